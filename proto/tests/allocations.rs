//! No allocation for a packet in the steady state: at a core with thousands of sites the allocator would be a lock that
//! all of them share, and the next packet's latency would be anybody's guess.

mod direct;

use direct::{BOX, CORE, Direct, packet, site};
use proto::PeerConfig;
use proto::policy::{Class, Egress, Policy};
use proto::tunnel::Ciphered;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::time::Duration;

/// The system's allocator, counting by thread: other tests and the harness run beside.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

fn count() {
    // Not there any more while a thread ends.
    let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
}

#[allow(unsafe_code)] // an allocator cannot be written without
// SAFETY: the calls are passed on as they are; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.realloc(memory, layout, size) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

#[test]
fn a_packet_allocates_nothing_in_the_steady_state() {
    nothing_is_allocated(&mut Direct::new(|| Box::<Ciphered>::default()), 0);
}

#[test]
fn a_packet_in_fragments_allocates_nothing_in_the_steady_state() {
    let mut pair = Direct::new(|| Box::<Ciphered>::default());
    pair.largest = 1_272;
    nothing_is_allocated(&mut pair, 2_000);
}

#[test]
fn a_packet_whose_class_is_looked_for_as_it_comes_allocates_nothing_in_the_steady_state() {
    let mut pair = Direct::new(|| Box::<Ciphered>::default());
    let egress = Some(Egress { name: "cheap".into(), tun: Some(1) });
    let all = Class { egress, ..Class::everything("all") };
    let policy = Policy::new(Default::default(), vec![all]).expect("a good policy");
    let with_policy = PeerConfig { policy: policy.into(), ..site(1) };
    pair.ends[CORE].set_peers(pair.now, vec![with_policy]).expect("a sound site");
    nothing_is_allocated(&mut pair, 0);
    let classes = &pair.ends[CORE].snapshot(pair.now).peers[0].classes;
    assert_eq!(classes[0].rx.packets, 24_000, "it was looked for");
}

/// So many packets in the steady state go in fragments each way.
fn nothing_is_allocated(pair: &mut Direct, fragmented: u64) {
    let mut packets = [packet(BOX, 1400), packet(CORE, 1400)];
    let mut batch = |pair: &mut Direct| {
        for _ in 0..100 {
            for end in [BOX, CORE] {
                pair.offer(end, &mut packets[end]);
            }
        }
    };
    // Until all buffers have grown to what they need: numbers are kept for 2 s, or 16,384 of them.
    for _ in 0..220 {
        batch(pair);
        pair.run_for(Duration::from_millis(10));
    }
    let fragments = |pair: &Direct| [BOX, CORE].map(|end| pair.ends[end].snapshot(pair.now).peers[0].fragmented);
    let (delivered, before) = (pair.delivered, fragments(pair));
    // Receipts are built between the batches, each 10 ms whatever the number of packets; those may allocate.
    for _ in 0..20 {
        let before = ALLOCATIONS.get();
        batch(pair);
        assert_eq!(ALLOCATIONS.get(), before, "200 packets");
        pair.run_for(Duration::from_millis(10));
    }
    assert_eq!(pair.delivered, delivered.map(|before| before + 2_000));
    assert_eq!(fragments(pair), before.map(|before| before + fragmented));
}
