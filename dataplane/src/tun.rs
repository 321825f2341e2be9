//! The TUN device in batches: the kernel hands over and takes whole TCP and UDP bursts (virtio offload), which are cut
//! and merged here.

use crate::engine::Counters;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use tun_rs::{DeviceBuilder, GROTable, IDEAL_BATCH_SIZE, SyncDevice, VIRTIO_NET_HDR_LEN};

/// Into how many packets one burst may fall; the device is told, and the kernel cuts larger ones itself.
pub(crate) const SEGMENTS: usize = IDEAL_BATCH_SIZE;
/// How many packets are read before the node gets them: as many as one burst can be.
const BATCH: usize = SEGMENTS;
/// The largest burst.
const LARGEST: usize = 65_535;
/// The bytes in front of each packet that go to the device with it.
pub(crate) const HEADROOM: usize = VIRTIO_NET_HDR_LEN;
/// A delivered packet's buffer grows to this, so that the following ones of its flow can be merged into it: tun-rs
/// merges only into memory that is there, and asks for the headroom twice.
const MERGED: usize = LARGEST + 2 * HEADROOM;

/// A TUN device. It is not persistent: it goes when this value or the process does.
pub struct Tun {
    device: SyncDevice,
    name: String,
    mtu: u16,
    offload: bool,
    burst: Vec<u8>,
    packets: Vec<Vec<u8>>,
    sizes: Vec<usize>,
    filled: usize,
    merge: GROTable,
}

impl std::fmt::Debug for Tun {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tun").field("name", &self.name).field("mtu", &self.mtu).field("offload", &self.offload).finish()
    }
}

impl Tun {
    /// Makes the device, still down. [`crate::host::Host::open_tun`] is the way to one that is ready.
    pub(crate) fn open(name: &str, mtu: u16) -> io::Result<Self> {
        let build = |offload: bool| {
            DeviceBuilder::new()
                .name(name)
                .mtu(mtu)
                .with(|builder| {
                    builder.offload(offload);
                })
                .enable(false)
                .build_sync()
        };
        let (device, offload) = match build(true) {
            Ok(device) => (device, true),
            // In use, or not allowed: without offload it would be the same.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EPERM | libc::ENOENT)) => {
                return Err(error);
            }
            Err(error) => {
                let device = build(false)?;
                tracing::warn!(%error, tun = name, "the kernel refuses offload on the TUN: it works, but slower");
                (device, false)
            }
        };
        device.set_nonblocking(true)?;
        Ok(Tun {
            device,
            name: name.to_owned(),
            mtu,
            offload,
            burst: vec![0; HEADROOM + LARGEST],
            // A burst may begin when all but one of the batch are there.
            packets: vec![vec![0; usize::from(mtu)]; BATCH + SEGMENTS],
            sizes: vec![0; BATCH + SEGMENTS],
            filled: 0,
            merge: GROTable::new(),
        })
    }

    pub(crate) fn set_up(&self) -> io::Result<()> {
        self.device.enabled(true)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its MTU, in octets.
    pub fn mtu(&self) -> u16 {
        self.mtu
    }

    /// Its interface index.
    pub fn index(&self) -> io::Result<u32> {
        self.device.if_index()
    }

    /// Reads a batch, for [`Tun::packets`]. An error is the device's end.
    pub(crate) fn receive(&mut self, counters: &mut Counters) -> io::Result<()> {
        self.filled = 0;
        while self.filled < BATCH {
            let (packets, sizes) = (&mut self.packets[self.filled..], &mut self.sizes[self.filled..]);
            match self.device.recv_multiple(&mut self.burst, packets, sizes, 0) {
                Ok(count) => self.filled += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if is_gone(&error) => return Err(error),
                // A burst that could not be cut; what follows it may be whole.
                Err(error) => {
                    tracing::debug!(%error, "cannot read a packet from the TUN");
                    counters.tun_read_errors += 1;
                    if error.raw_os_error().is_some() {
                        break;
                    }
                }
            }
        }
        counters.tun_read += self.filled as u64;
        Ok(())
    }

    /// Whether the last reading brought nothing.
    pub(crate) fn is_empty(&self) -> bool {
        self.filled == 0
    }

    /// What was read last.
    pub(crate) fn packets(&mut self) -> impl Iterator<Item = &mut [u8]> {
        self.packets.iter_mut().zip(&self.sizes).take(self.filled).map(|(packet, &size)| &mut packet[..size])
    }

    /// Writes packets, each behind [`HEADROOM`] bytes, and merges what can be. An error is the device's end.
    pub(crate) fn send(&mut self, deliveries: &mut [Vec<u8>], counters: &mut Counters) -> io::Result<()> {
        if deliveries.is_empty() {
            return Ok(());
        }
        counters.tun_written += deliveries.len() as u64;
        if self.offload {
            for delivery in deliveries.iter_mut().filter(|delivery| delivery.capacity() < MERGED) {
                delivery.reserve_exact(MERGED - delivery.len());
            }
        }
        match self.device.send_multiple(&mut self.merge, deliveries, HEADROOM) {
            Ok(_) => Ok(()),
            Err(error) if is_gone(&error) => Err(error),
            // The last of possibly several errors of this batch; the other packets went out.
            Err(error) => {
                tracing::debug!(%error, "cannot write a packet to the TUN");
                counters.tun_write_errors += 1;
                Ok(())
            }
        }
    }
}

/// Whether the device was deleted under us.
fn is_gone(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EBADFD)
}

impl AsFd for Tun {
    #[allow(unsafe_code)]
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor belongs to `self.device`, which is open for as long as `self` is borrowed.
        unsafe { BorrowedFd::borrow_raw(self.device.as_raw_fd()) }
    }
}
