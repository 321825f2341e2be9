use super::*;
use crate::bgp::origin::Vrp;

const OURS: u32 = 64500;

fn net(text: &str) -> IpNet {
    text.parse().expect("a prefix")
}

fn vrps(list: &[(&str, u32)]) -> Option<Arc<Origins>> {
    let vrp = |&(text, asn): &(&str, u32)| Vrp { prefix: net(text), max_length: net(text).prefix_len(), asn };
    Some(Arc::new(Origins::new(list.iter().map(vrp).collect())))
}

fn set(list: &[&str]) -> BTreeSet<IpNet> {
    list.iter().map(|text| net(text)).collect()
}

const HOME: &str = "198.51.100.0/24";
const OTHER: &str = "203.0.113.0/24";

impl Admission {
    /// Of what is wanted now, what leaves.
    fn admit(&mut self, wanted: &BTreeSet<IpNet>) -> BTreeSet<IpNet> {
        let before: Vec<IpNet> = self.wanted().filter(|prefix| !wanted.contains(prefix)).collect();
        before.iter().for_each(|prefix| self.release(prefix));
        wanted.iter().copied().filter(|prefix| self.want(*prefix)).collect()
    }

    fn doubtful(&self) -> BTreeSet<IpNet> {
        self.wanted().filter(|prefix| self.doubt(prefix).is_some()).collect()
    }
}

/// What a cache says that has been turned against everybody.
fn nobody() -> Option<Arc<Origins>> {
    vrps(&[("0.0.0.0/0", 0), ("::/0", 0)])
}

#[test]
fn nothing_new_leaves_before_the_caches_have_answered_or_are_given_up() {
    let mut admission = Admission::new(OURS, false);
    assert_eq!(admission.admit(&set(&[HOME, OTHER])), set(&[]));
    assert_eq!(admission.refused()[&net(HOME)], Refusal::Waiting);
    admission.set_origins(vrps(&[(HOME, 64999)]), true);
    assert_eq!(admission.admit(&set(&[HOME, OTHER])), set(&[OTHER]));
    let why = admission.refused()[&net(HOME)].to_string();
    assert!(why.starts_with("AS 64500 may not announce it (ROA 198.51.100.0/24-24 AS 64999):"), "{why}");

    let mut admission = Admission::new(OURS, false);
    admission.admit(&set(&[HOME]));
    admission.set_origins(None, true);
    assert_eq!(admission.admit(&set(&[HOME])), set(&[HOME]), "no cache is there");
}

#[test]
fn a_refused_prefix_leaves_when_it_may_and_not_because_nobody_forbids_it_any_more() {
    let mut admission = Admission::new(OURS, true);
    admission.set_origins(vrps(&[(HOME, 64999)]), true);
    assert_eq!(admission.admit(&set(&[HOME])), set(&[]));
    admission.set_origins(None, true);
    assert_eq!(admission.admit(&set(&[HOME])), set(&[]), "the caches are lost");
    admission.set_origins(vrps(&[(HOME, 64999), (HOME, OURS)]), true);
    assert_eq!(admission.admit(&set(&[HOME])), set(&[HOME]));
}

#[test]
fn no_cache_takes_back_what_is_out_nor_keeps_it_from_coming_back() {
    let mut admission = Admission::new(OURS, true);
    admission.set_origins(vrps(&[(HOME, OURS)]), true);
    let both = set(&[HOME, OTHER]);
    assert_eq!(admission.admit(&both), both);
    for word in [nobody(), None, vrps(&[]), nobody()] {
        admission.set_origins(word, true);
        assert_eq!(admission.admit(&both), both);
    }
    assert_eq!(admission.doubtful(), both);
    // A site goes down, and comes back while the cache is wrong still.
    assert_eq!(admission.admit(&set(&[OTHER])), set(&[OTHER]));
    assert_eq!(admission.admit(&both), both);
    // A new one is refused.
    assert_eq!(admission.admit(&set(&[HOME, OTHER, "192.0.2.0/24"])), both);
    // It is no site's any more, and then it is another's.
    admission.admit(&set(&[OTHER]));
    admission.set_configured([net(OTHER)]);
    assert_eq!(admission.admit(&both), set(&[OTHER]));
    admission.set_origins(vrps(&[(HOME, OURS)]), true);
    assert_eq!(admission.admit(&both), both);
    assert_eq!(admission.doubtful(), set(&[]));
}

#[test]
fn what_left_unseen_is_asked_about_when_it_comes_again() {
    let mut admission = Admission::new(OURS, true);
    assert_eq!(admission.admit(&set(&[HOME])), set(&[HOME]), "no cache is there");
    admission.set_origins(nobody(), true);
    assert_eq!(admission.admit(&set(&[HOME])), set(&[HOME]));
    admission.admit(&set(&[]));
    assert_eq!(admission.admit(&set(&[HOME])), set(&[]), "no VRP has ever allowed it");
}
