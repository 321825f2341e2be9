//! Uplinks that may have either kind of tunnel: which of the two paths is there, which carries the traffic, and whether one is
//! throttled. The box decides ([`crate::auto`]); both ends measure ([`crate::throttle`]).

use super::{Context, Peer};
use crate::auto::{Auto, Throttling, View};
use crate::node::PathState;
use crate::path::Path;
use crate::snapshot::TunnelSnapshot;
use crate::tunnel::Role;
use crate::{Instant, LinkId, MAX_SLOTS, TunnelKind, Uplink, path_number};

/// An uplink of this box that may have either kind of tunnel.
#[derive(Debug)]
pub(super) struct Either {
    slot: u8,
    link: Option<LinkId>,
    /// How it can be used now.
    uplink: Option<Uplink>,
    auto: Auto,
}

fn view(path: &Path, now: Instant) -> View {
    let here = path.throttle.share().map(Throttling::Here);
    View {
        state: path.health.state(),
        since: path.health.since(),
        reason: path.health.reason(),
        on_probation: path.health.on_probation(now),
        throttled: here.or(path.throttled_there.then_some(Throttling::There)),
    }
}

impl Peer {
    /// After the peer was configured: which of its uplinks may have either kind. Those that could before go on as they are.
    pub(super) fn find_either(&mut self, now: Instant) {
        if self.role == Role::Responder {
            return; // the box says it
        }
        let mut before = std::mem::take(&mut self.either);
        for slot in 0..MAX_SLOTS as u8 {
            let of_slot = || self.paths.iter().filter(move |path| path.config.slot == slot);
            let either = of_slot().count() > 1;
            let link = of_slot().find_map(|path| path.config.link);
            let old = before.iter().position(|old| old.slot == slot).map(|at| before.swap_remove(at));
            let kept = old.filter(|_| either);
            let leads = kept.as_ref().map_or(TunnelKind::WireGuard, |kept| kept.auto.leads());
            for path in self.paths.iter_mut().filter(|path| path.config.slot == slot) {
                path.either = either;
                path.set_stands_by(now, either && path.config.kind != leads);
            }
            if either {
                self.either.push(kept.unwrap_or(Either { slot, link, uplink: None, auto: Auto::new(now) }));
            }
        }
    }

    /// An uplink that may have either kind can be used, or cannot. `false`: it may not, or there is none of this link.
    pub(super) fn set_either(&mut self, ctx: &mut Context<'_>, link: LinkId, uplink: Option<&Uplink>) -> bool {
        let Some(at) = self.either.iter().position(|either| either.link == Some(link)) else { return false };
        let either = &mut self.either[at];
        let anew = either.uplink.is_some() != uplink.is_some();
        let slot = either.slot;
        if anew {
            either.auto.restart(ctx.now);
        }
        either.uplink = uplink.cloned();
        if anew {
            self.paths.iter_mut().filter(|path| path.config.slot == slot).for_each(Path::on_other_uplink);
        }
        self.put_in_force(ctx, at);
        true
    }

    /// Has the two paths of an uplink be there or rest, and lead or stand by, as was decided.
    fn put_in_force(&mut self, ctx: &mut Context<'_>, at: usize) {
        for kind in [TunnelKind::WireGuard, TunnelKind::Quic] {
            let &Either { slot, link, ref uplink, ref auto } = &self.either[at];
            let (wanted, stands_by) = (auto.wants(kind), auto.leads() != kind);
            let uplink = uplink.clone();
            let number = path_number(slot, kind);
            let (Some(path), Some(link)) = (self.path_mut(number), link) else { continue };
            path.set_stands_by(ctx.now, stands_by);
            if wanted && path.route.is_none() && kind == TunnelKind::Quic {
                // It was in vain the last time, and that may be long ago.
                path.throttle.forget(ctx.now);
            }
            let transition = match &uplink {
                Some(_) if !wanted => path.rest(ctx.now),
                _ => path.set_uplink(ctx.now, link, uplink.as_ref()),
            };
            if let Some(transition) = transition {
                self.lost[usize::from(number)] = transition.to == PathState::Absent;
            }
            self.report(ctx, number, transition);
        }
    }

    /// The choice of tunnels follows what was learnt. Sends nothing.
    pub(super) fn choose_tunnels(&mut self, ctx: &mut Context<'_>) {
        self.judge_throttles(ctx.now);
        for at in 0..self.either.len() {
            let slot = self.either[at].slot;
            let of = |kind| self.paths.iter().find(|path| path.number() == path_number(slot, kind));
            let (Some(wireguard), Some(quic)) = (of(TunnelKind::WireGuard), of(TunnelKind::Quic)) else { continue };
            let (wireguard, quic) = (view(wireguard, ctx.now), view(quic, ctx.now));
            let either = &mut self.either[at];
            if either.uplink.is_none() {
                continue;
            }
            let shape = |auto: &Auto| (auto.leads(), auto.wants(TunnelKind::WireGuard), auto.wants(TunnelKind::Quic));
            let before = shape(&either.auto);
            either.auto.follow(ctx.now, wireguard, quic);
            if shape(&either.auto) != before {
                self.put_in_force(ctx, at);
            }
        }
    }

    /// The other path over the uplink of `path`, which carries the traffic, has room: some probes beside that disturb nobody.
    fn may_try(&self, path: &Path, now: Instant) -> bool {
        let other = |other: &&Path| other.config.slot == path.config.slot && other.number() != path.number();
        self.is_active(now)
            && self.paths.iter().find(other).is_some_and(|other| {
                other.health.state() == PathState::Up && !other.shaper.is_held() && other.shaper.held().0 == 0
            })
    }

    fn judge_throttles(&mut self, now: Instant) {
        for at in 0..self.paths.len() {
            if self.paths[at].either && self.paths[at].throttle.is_due(now) {
                let may_try = self.may_try(&self.paths[at], now);
                self.paths[at].judge_throttle(now, may_try);
            }
        }
    }

    /// Sends what is due of trains of probes.
    pub(super) fn send_trains(&mut self, ctx: &mut Context<'_>) {
        for at in 0..self.paths.len() {
            if self.paths[at].either {
                let may_try = self.may_try(&self.paths[at], ctx.now);
                self.paths[at].send_train(ctx, may_try);
            }
        }
    }

    /// When something of this is due.
    pub(super) fn either_deadline(&self, now: Instant) -> Option<(Instant, &'static str)> {
        let choice = self.either.iter().filter_map(|either| Some((either.auto.deadline()?, "choice of tunnel")));
        let throttled = self.paths.iter().filter(|path| path.either && path.throttle.share().is_some());
        let trains = throttled.filter_map(|path| Some((path.train_at(self.may_try(path, now))?, "train")));
        choice.chain(trains).min()
    }

    /// What is to be shown of it.
    pub(super) fn tunnels(&self, now: Instant) -> Vec<TunnelSnapshot> {
        let of = |either: &Either| {
            let port = either.uplink.as_ref()?.endpoints.first().map(|endpoint| endpoint.port());
            let reason = either.auto.words(now, port);
            Some(TunnelSnapshot { slot: either.slot, tunnel: either.auto.leads(), reason })
        };
        self.either.iter().filter_map(of).collect()
    }
}
