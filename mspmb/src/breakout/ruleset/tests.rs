use super::*;
#[test]
fn print() {
    let class = |name: &str, matches, direct| proto::policy::Class {
        name: name.into(),
        matches,
        up: Default::default(),
        down: Default::default(),
        priority: None,
        direct,
    };
    let nets = |t: &[&str]| t.iter().map(|t| t.parse().expect("n")).collect::<Vec<IpNet>>();
    let m = Matches {
        dst: nets(&["198.18.0.0/24", "198.18.0.0/25", "2001:db8:1::/48"]),
        proto: vec![6, 47],
        dport: vec![443..=443, 80..=90, 85..=99],
        dscp: 1 << 46 | 1,
        ..Default::default()
    };
    let policy = Policy::new(
        Default::default(),
        vec![
            class("a", Matches { proto: vec![6], ..Default::default() }, None),
            class("b", m, Some(Default::default())),
            class("c", Matches { dscp: 8, ..Default::default() }, Some(Default::default())),
        ],
    )
    .expect("p");
    let d = |leaves| Decision { leaves, why: "" };
    let decisions = [
        [d(Leaves::ByTunnel); 2],
        [d(Leaves::ByUplink(0)), d(Leaves::ByUplink(1))],
        [d(Leaves::Nowhere); 2],
        [d(Leaves::ByTunnel); 2],
    ];
    let outlets = [
        Outlet { slot: 0, interface: "wan0".into(), mtu: 1500 },
        Outlet { slot: 1, interface: "wan1".into(), mtu: 1492 },
    ];
    let r = ruleset(&nets(&["198.51.100.0/24", "2001:db8:100::/48"]), "msp0", &policy, &|_| true, &decisions, &outlets);
    let rt = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("rt");
    rt.block_on(async {
        dataplane::netfilter::replace(TABLE, None, &r).await.expect("applied");
        let d2 = [
            [d(Leaves::ByUplink(0)); 2],
            [d(Leaves::ByUplink(1)), d(Leaves::ByTunnel)],
            [d(Leaves::Nowhere); 2],
            [d(Leaves::ByTunnel); 2],
        ];
        let r2 =
            ruleset(&nets(&["198.51.100.0/24", "2001:db8:100::/48"]), "msp0", &policy, &|_| true, &d2, &outlets[..1]);
        dataplane::netfilter::replace(TABLE, Some(&r), &r).await.expect("applied again");
        dataplane::netfilter::replace(TABLE, Some(&r), &r2).await.expect("applied other");
        dataplane::netfilter::replace(TABLE, Some(&r2), &r).await.expect("and back");
        println!("{:?}", dataplane::netfilter::counters(TABLE).await);
    });
}
