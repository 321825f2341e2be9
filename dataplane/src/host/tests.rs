use super::*;
use crate::netlink::Target;

fn sysctl(key: &str) -> Change {
    Change::Sysctl(Sysctl { key: key.into(), value: "1".into() })
}

fn rule(from: &str) -> Change {
    Change::Rule(Rule {
        by: None,
        mark: None,
        from: from.parse().expect("a prefix"),
        to: None,
        table: 7700,
        priority: 7701,
    })
}

#[test]
fn only_what_differs_is_changed_and_nothing_is_removed_before_its_successor_is_there() {
    let (a, b, c) = (sysctl("a"), rule("198.51.100.0/24"), rule("203.0.113.0/24"));
    assert_eq!(plan(&[], &[a.clone(), b.clone(), a.clone()]), (vec![a.clone(), b.clone()], vec![]));
    assert_eq!(plan(&[a.clone(), b.clone()], &[a.clone(), b.clone()]), (vec![], vec![]));
    assert_eq!(plan(&[a.clone(), b.clone()], std::slice::from_ref(&c)), (vec![c.clone()], vec![b.clone(), a.clone()]));
    let route =
        |target| Change::Route(Route { prefix: "0.0.0.0/0".parse().expect("a prefix"), table: 1, metric: 1, target });
    let (old, new) = (route(Target::Unreachable), route(Target::Interface("msp0".into())));
    assert_eq!(plan(std::slice::from_ref(&old), std::slice::from_ref(&new)), (vec![new], vec![old]));
}

#[test]
fn a_journal_tells_what_is_still_to_be_undone() {
    let entry = |key: &str, old: &str, new: &str| Entry { key: key.into(), old: old.into(), new: new.into() };
    assert_eq!(Journal::parse("").0, []);
    assert_eq!(Journal::parse("pid\t1\nset\ta\t0\t1\nset\tb\t1\t2\nundone\ta\n").0, [entry("b", "1", "2")]);
    // Set twice: back to what was there before the first time.
    assert_eq!(Journal::parse("set\ta\t0\t1\npid\t2\nset\ta\t1\t2\n").0, [entry("a", "0", "2")]);
    assert_eq!(Journal::parse("table\tx\ntable\ty\ngone\tx\n").1, ["y"]);
}

#[test]
fn a_journal_cut_at_any_byte_loses_only_its_last_line() {
    let whole = "pid\t1\nset\ta\t0\t1\nset\tb\t1\t2\n";
    for end in 0..whole.len() {
        let torn = &whole[..end];
        let lines = torn.matches('\n').count();
        assert_eq!(Journal::parse(torn).0.len(), lines.saturating_sub(1), "{torn:?}");
        // What is appended after the cut is read.
        let mended = format!("{torn}\nset\tc\t5\t6\n");
        assert!(Journal::parse(&mended).0.iter().any(|entry| entry.key == "c"), "{mended:?}");
    }
}

#[test]
fn one_daemon_at_a_time_and_the_next_finds_what_the_last_left() {
    let folder = std::env::temp_dir().join(format!("dataplane-journal-{}", std::process::id()));
    let path = folder.join("run/box.journal");
    let mut journal = Journal::open(&path).expect("a first daemon");
    let entry = Entry { key: "net/none/such".into(), old: "0".into(), new: "1".into() };
    journal.note(entry.clone()).expect("a note");
    let refused = Journal::open(&path).expect_err("it is locked").to_string();
    assert!(refused.starts_with(&format!("already running as pid {}", std::process::id())), "{refused}");

    // A kill: the lock goes, the file stays, its last line may be cut.
    drop(journal);
    std::fs::write(&path, std::fs::read_to_string(&path).expect("the journal") + "set\tx\t").expect("writing");
    let mut journal = Journal::open(&path).expect("the next daemon");
    assert_eq!(journal.entries, [entry]);
    journal.restore("net/none/such").expect("its interface is gone, which is no error");
    drop(journal);
    let journal = Journal::open(&path).expect("a third");
    assert_eq!(journal.entries, []);
    journal.remove();
    assert!(!path.exists());
    std::fs::remove_dir_all(&folder).expect("removing the scratch folder");
}
