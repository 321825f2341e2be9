//! The thread that owns the table of routes: it hears what the neighbours' tasks have to tell, and has the kernel's routes
//! follow.
//!
//! Everything here is a piece of bounded work, and what is urgent is looked for between two pieces. So a lost transit never
//! waits for a full table to be written, and who looks at a million routes holds up nobody.

use super::origin::Origins;
use super::rib::{
    Accept, ChoiceConfig, Counts, Exceeded, Explained, Gateway, NeighborConfig, Operation, Page, Rib, Session, WARN_AT,
};
use super::role::Role;
use super::update::Update;
use super::{Families, Family};
use dataplane::host::{Owner, effective_rp_filter};
use dataplane::netlink::Watch;
use dataplane::netlink::fib::Fib;
use futures_util::FutureExt;
use ipnet::IpNet;
use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

/// How many UPDATEs may wait for the thread: with a few kilobytes each, what a neighbour can make it keep before it stops
/// reading from them.
const WAITING: usize = 64;
/// How many prefixes are looked at between two looks at what has come in: a millisecond's work, most of it the kernel's.
const PIECE: usize = 512;
/// When everything is looked at again that nobody tells of: ways to next hops behind other routers, and routes that the
/// kernel has refused.
const AGAIN: Duration = Duration::from_secs(10);

/// What a neighbour's task tells.
#[derive(Debug)]
pub(crate) enum News {
    /// Its session is established.
    Up {
        /// The neighbour's router identifier.
        router_id: Ipv4Addr,
    },
    /// What the neighbour says.
    Update(Update),
    /// It begins to say everything of a family again (RFC 7313).
    Stale(Family),
    /// It has said everything.
    Sweep(Family),
    /// The session has ended.
    Down {
        /// The families whose routes are kept until a [`News::Sweep`] (RFC 4724).
        keep: Families,
    },
}

/// What a neighbour's task is to do.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Order {
    /// The neighbour has sent more than it may: end the session.
    Exceeded(Exceeded),
    /// The link to it is gone, and the session with it, whatever TCP hopes for.
    LinkLost,
}

enum Input {
    Neighbor(usize, News),
    Own(Vec<IpNet>),
    Origins(Arc<Origins>),
    Look(Box<dyn FnOnce(&Rib) + Send>),
    Stop,
}

/// A neighbour, as far as its routes go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Transit {
    pub(crate) name: String,
    pub(crate) address: IpAddr,
    pub(crate) local_as: u32,
    pub(crate) remote_as: u32,
    /// What we are to it.
    pub(crate) role: Option<Role>,
    pub(crate) accept: Accept,
    /// It may have several routes to a prefix (RFC 7911).
    pub(crate) add_path: bool,
    pub(crate) max_prefixes: [Option<u32>; 2],
    /// How long after it sent more it is spoken to again; never, if none.
    pub(crate) restart: Option<Duration>,
    /// Its next hops may be behind another router.
    pub(crate) multihop: bool,
}

/// The running thread.
#[derive(Debug)]
pub(crate) struct Routing {
    inputs: mpsc::Sender<Input>,
    thread: std::thread::JoinHandle<()>,
}

/// A neighbour's task's line to the thread.
#[derive(Clone, Debug)]
pub(crate) struct Feed {
    neighbor: usize,
    inputs: mpsc::Sender<Input>,
}

/// Room for one piece of news.
pub(crate) struct Room<'a>(usize, mpsc::Permit<'a, Input>);

impl Feed {
    /// Waits until the thread can take something more. Nothing when it has ended.
    pub(crate) async fn room(&self) -> Option<Room<'_>> {
        Some(Room(self.neighbor, self.inputs.reserve().await.ok()?))
    }
}

impl<'a> Feed {
    /// The same, without waiting.
    pub(crate) fn room_now(&'a self) -> Option<Room<'a>> {
        Some(Room(self.neighbor, self.inputs.try_reserve().ok()?))
    }
}

impl Room<'_> {
    pub(crate) fn tell(self, news: News) {
        self.1.send(Input::Neighbor(self.0, news));
    }
}

impl Routing {
    /// Starts it, within a tokio runtime; what an earlier run left in the kernel is removed first. Each neighbour's task is
    /// told by the `orders` of its place what it is to do.
    pub(crate) fn start(
        transits: Vec<Transit>,
        choices: Vec<ChoiceConfig>,
        own: impl IntoIterator<Item = IpNet>,
        orders: Vec<mpsc::Sender<Order>>,
    ) -> io::Result<Routing> {
        let mut kernel = Fib::open(Owner::CoreLearnt as u8)?;
        let swept = kernel.sweep()?;
        if swept > 0 {
            tracing::info!(objects = swept, "an earlier run's learnt routes are removed");
        }
        let watch = Watch::interfaces()?;
        let (inputs, received) = mpsc::channel(WAITING);
        let neighbor = |transit: &Transit| NeighborConfig {
            name: transit.name.clone(),
            address: transit.address,
            session: Session { local_as: transit.local_as, remote_as: transit.remote_as, role: transit.role },
            accept: transit.accept,
            add_path: transit.add_path,
            max_prefixes: transit.max_prefixes,
        };
        let mut rib = Rib::new(transits.iter().map(neighbor).collect(), choices);
        rib.set_own(own);
        let warned = vec![[false; 2]; transits.len()];
        let task = Task {
            rib,
            transits,
            orders,
            linked: vec![false; warned.len()],
            warned,
            kernel,
            watch,
            inputs: received,
            operations: Vec::new(),
            refused: BTreeMap::new(),
            again: Instant::now() + AGAIN,
        };
        let runtime = tokio::runtime::Handle::current();
        let run = move || runtime.block_on(task.run());
        let thread = std::thread::Builder::new().name("routing".into()).spawn(run)?;
        Ok(Routing { inputs, thread })
    }

    /// The line of the neighbour at this place.
    pub(crate) fn feed(&self, neighbor: usize) -> Feed {
        Feed { neighbor, inputs: self.inputs.clone() }
    }

    /// The sites' prefixes are these.
    pub(crate) async fn set_own(&self, prefixes: Vec<IpNet>) {
        // It fails when the thread has ended, and then there is nothing to keep from use.
        let _ = self.inputs.send(Input::Own(prefixes)).await;
    }

    /// The VRPs are these.
    pub(crate) async fn set_origins(&self, origins: Arc<Origins>) {
        // Here too.
        let _ = self.inputs.send(Input::Origins(origins)).await;
    }

    /// For those who want to see something.
    pub(crate) fn looker(&self) -> Looker {
        Looker(self.inputs.clone())
    }

    /// Ends it, and removes its routes from the kernel.
    pub(crate) async fn stop(self) {
        let _ = self.inputs.send(Input::Stop).await;
        let thread = self.thread;
        let ended = tokio::task::spawn_blocking(move || thread.join()).await;
        if !matches!(ended, Ok(Ok(()))) {
            tracing::error!("the routing thread has panicked: its routes are removed at the next start");
        }
    }
}

/// Sees what there is, a page at a time.
#[derive(Clone, Debug)]
pub(crate) struct Looker(mpsc::Sender<Input>);

/// What there is in numbers.
#[derive(Clone, Debug)]
pub(crate) struct Overview {
    /// Of each neighbour, by its place.
    pub(crate) neighbors: Vec<Counts>,
    /// How many prefixes of IPv4 and IPv6 there are.
    pub(crate) prefixes: [usize; 2],
    /// How many different sets of attributes.
    pub(crate) attributes: usize,
    /// How many prefixes the kernel is behind.
    pub(crate) backlog: usize,
}

impl Looker {
    /// Nothing when the thread has ended.
    async fn look<T: Send + 'static>(&self, look: impl FnOnce(&Rib) -> T + Send + 'static) -> Option<T> {
        let (answer, answered) = oneshot::channel();
        // Whoever asked may have gone.
        let look = Box::new(move |rib: &Rib| drop(answer.send(look(rib))));
        self.0.send(Input::Look(look)).await.ok()?;
        answered.await.ok()
    }

    pub(crate) async fn overview(&self, neighbors: usize) -> Option<Overview> {
        self.look(move |rib| {
            let (prefixes, attributes) = rib.sizes();
            let neighbors = (0..neighbors).map(|neighbor| rib.counts(neighbor)).collect();
            Overview { neighbors, prefixes, attributes, backlog: rib.backlog() }
        })
        .await
    }

    pub(crate) async fn page(&self, from: u64, most: u32) -> Option<Page> {
        self.look(move |rib| rib.page(from, most)).await
    }

    pub(crate) async fn explain(&self, asked: IpNet) -> Option<Explained> {
        self.look(move |rib| rib.explain(&asked)).await
    }
}

struct Task {
    rib: Rib,
    transits: Vec<Transit>,
    orders: Vec<mpsc::Sender<Order>>,
    /// Whose session is up, over a link that was there.
    linked: Vec<bool>,
    /// Who has been said to be near its bound.
    warned: Vec<[bool; 2]>,
    kernel: Fib,
    watch: Watch,
    inputs: mpsc::Receiver<Input>,
    operations: Vec<Operation>,
    /// What the kernel would not do, by error number: to be said once in a while.
    refused: BTreeMap<Option<i32>, (usize, String)>,
    again: Instant,
}

impl Task {
    async fn run(mut self) {
        loop {
            if self.rib.is_idle() {
                tokio::select! {
                    biased;
                    changed = self.watch.changed() => self.interfaces(changed),
                    input = self.inputs.recv() => match input {
                        None | Some(Input::Stop) => break,
                        Some(input) => self.take(input),
                    },
                    () = tokio::time::sleep_until(self.again) => self.look_again(),
                }
            } else {
                if let Some(changed) = self.watch.changed().now_or_never() {
                    self.interfaces(changed);
                }
                if self.again <= Instant::now() {
                    self.look_again();
                }
            }
            // As much as may wait, so that a neighbour's last word is not heard later than that.
            let mut stopped = false;
            for _ in 0..WAITING {
                match self.inputs.try_recv() {
                    Ok(Input::Stop) => stopped = true,
                    Ok(input) => self.take(input),
                    Err(_) => break,
                }
            }
            if stopped {
                break;
            }
            self.ways(false);
            self.write();
        }
        // With the objects go their routes.
        if let Err(error) = self.kernel.sweep() {
            tracing::warn!(%error, "learnt routes stay in the kernel, until the next start");
        }
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Neighbor(place, news) => self.hear(place, news),
            Input::Own(prefixes) => self.rib.set_own(prefixes),
            Input::Origins(origins) => self.rib.set_origins(origins),
            Input::Look(look) => look(&self.rib),
            // Looked for before.
            Input::Stop => {}
        }
    }

    fn hear(&mut self, place: usize, news: News) {
        match news {
            News::Up { router_id } => {
                self.warned[place] = [false; 2];
                self.linked[place] = self.is_linked(place);
                self.rib.up(place, router_id);
            }
            News::Update(update) => match self.rib.apply(place, &update) {
                Ok(()) => self.warn(place),
                Err(exceeded) => {
                    let Transit { name, .. } = &self.transits[place];
                    tracing::error!(neighbor = name, "{exceeded}: the session is ended, its routes are not used");
                    self.order(place, Order::Exceeded(exceeded));
                }
            },
            News::Stale(family) => self.rib.mark_stale(place, family),
            News::Sweep(family) => self.rib.sweep(place, family),
            News::Down { keep: Families::NONE } => self.rib.down(place),
            News::Down { keep } => {
                for family in [Family::Ipv4, Family::Ipv6] {
                    self.rib.mark_stale(place, family);
                    if !keep.contains(family) {
                        self.rib.sweep(place, family);
                    }
                }
            }
        }
    }

    fn order(&self, place: usize, order: Order) {
        // Full only if it has not acted upon the one before, and that ended the session too.
        let _ = self.orders[place].try_send(order);
    }

    /// Is the neighbour on a link of ours, and is that up?
    fn is_linked(&mut self, place: usize) -> bool {
        matches!(self.kernel.hop(self.transits[place].address), Ok(Some(hop)) if hop.via.is_none())
    }

    fn warn(&mut self, place: usize) {
        let Transit { name, max_prefixes, .. } = &self.transits[place];
        if *max_prefixes == [None; 2] || self.warned[place] == [true; 2] {
            return;
        }
        let prefixes = self.rib.counts(place).prefixes;
        for (family, most) in [Family::Ipv4, Family::Ipv6].into_iter().zip(max_prefixes) {
            let (Some(most), count) = (most, prefixes[family as usize]) else { continue };
            let near = u64::from(count) * 100 >= u64::from(*most) * WARN_AT;
            if near && !std::mem::replace(&mut self.warned[place][family as usize], true) {
                tracing::warn!(neighbor = name, ?family, prefixes = count, most, "near its max_prefixes");
            }
        }
    }

    /// An interface or an address has changed. The kernel removes the objects of an interface that goes, unasked.
    fn interfaces(&mut self, changed: io::Result<()>) {
        if let Err(error) = changed {
            tracing::warn!(%error, "cannot hear of interfaces");
        }
        self.ways(true);
        // What is lost is turned before anything else is asked.
        self.write();
        for place in 0..self.transits.len() {
            if self.linked[place] && !self.is_linked(place) {
                self.linked[place] = false;
                self.order(place, Order::LinkLost);
            }
        }
        match self.kernel.objects() {
            Ok(objects) => self.rib.objects_are(|id| objects.contains(&id)),
            Err(error) => tracing::warn!(%error, "cannot see the kernel's next-hop objects"),
        }
    }

    /// Finds the ways to next hops that are new, or to all.
    fn ways(&mut self, all: bool) {
        for (hop, neighbor, next_hop) in self.rib.next_hops(all) {
            let transit = &self.transits[neighbor];
            let way = match self.kernel.hop(next_hop.address) {
                Ok(Some(way)) => match way.via {
                    None => Some(Gateway { address: next_hop.address, interface: way.interface }),
                    Some(via) if transit.multihop => Some(Gateway { address: via, interface: way.interface }),
                    // It was on a link of ours: packets for it are not to take the way of the host's own.
                    Some(_) => None,
                },
                Ok(None) => None,
                Err(error) => {
                    tracing::warn!(neighbor = transit.name, next_hop = %next_hop.address, %error, "cannot ask for the way");
                    None
                }
            };
            if let (Some(Gateway { interface, .. }), false) = (way, all)
                && effective_rp_filter(&format!("#{interface}")) == 1
            {
                tracing::warn!(
                    neighbor = transit.name,
                    "strict reverse path filtering on its interface: packets for sites that come in by it are lost unless \
                     the main table's routes lead out by it; set net.ipv4.conf.*.rp_filter to 2 or 0 there"
                );
            }
            self.rib.set_way(hop, way);
        }
    }

    /// Has the kernel do the next piece.
    fn write(&mut self) {
        self.operations.clear();
        self.rib.operations(PIECE, &mut self.operations);
        if self.operations.is_empty() {
            return;
        }
        if let Err(error) = self.commit() {
            // What of it was done is not known: with the objects all routes go, and all are made again.
            tracing::error!(%error, "cannot write routes; all are written anew");
            let _ = self.kernel.sweep();
            self.rib.objects_are(|_| false);
        }
    }

    fn commit(&mut self) -> io::Result<()> {
        for operation in &self.operations {
            match *operation {
                Operation::SetObject { id, gateway } => {
                    self.kernel.set_object(id, gateway.address, gateway.interface)?
                }
                Operation::RemoveObject { id } => self.kernel.remove_object(id)?,
                Operation::SetRoute { table, prefix, metric, id } => {
                    self.kernel.set_route(table, prefix, metric, id)?
                }
                Operation::RemoveRoute { table, prefix, metric } => self.kernel.remove_route(table, prefix, metric)?,
            }
        }
        for refused in self.kernel.commit()? {
            let Some(operation) = self.operations.get(refused.place) else { continue };
            self.rib.refused(operation);
            let (count, last) = self.refused.entry(refused.cause.raw_os_error()).or_default();
            *count += 1;
            *last = format!("{operation:?}: {}", refused.cause);
        }
        Ok(())
    }

    fn look_again(&mut self) {
        self.again = Instant::now() + AGAIN;
        for (count, last) in std::mem::take(&mut self.refused).into_values() {
            tracing::warn!(count, last, "the kernel refused routes; they are tried again");
        }
        self.rib.retry();
        self.ways(true);
    }
}
