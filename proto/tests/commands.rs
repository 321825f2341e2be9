//! What a daemon tells a node while packets pass.

mod direct;

use direct::{BOX, CORE, Direct, packet, site};
use proto::Event;
use proto::PeerId;
use proto::tunnel::null::Null;
use std::time::Duration;

fn pair() -> Direct {
    Direct::new(|| Box::new(Null))
}

#[test]
fn a_command_does_not_swallow_a_receipt_that_is_due() {
    let mut pair = pair();
    pair.offer(BOX, &mut packet(BOX, 1000));
    pair.offer(BOX, &mut packet(BOX, 1000));
    // The core was busy, and a command is what it takes up first.
    pair.now += Duration::from_millis(15);
    pair.ends[CORE].set_peers(pair.now, vec![site(1)]).expect("the same site");
    pair.run_for(Duration::from_millis(40));
    let path = &pair.ends[BOX].snapshot(pair.now).peers[0].paths[0];
    assert_eq!(path.reason, "receipts arrive", "the path was never suspected");
}

#[test]
fn a_site_whose_last_path_is_taken_away_is_unreachable() {
    let mut pair = pair();
    pair.ends[CORE].set_peers(pair.now, vec![site(9)]).expect("the same site with other keys");
    assert!(!pair.ends[CORE].snapshot(pair.now).peers[0].reachable);
    assert_eq!(pair.ends[CORE].poll_event(), Some(Event::Unreachable(PeerId(1))));
}
