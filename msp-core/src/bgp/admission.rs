//! Which of the sites' prefixes may leave: those that the VRPs do not forbid (RFC 6811), and all that have left before.
//!
//! A cache may be wrong, and a withdrawal is an outage. So VRPs keep a prefix from being announced for the first time, and
//! never take one back (`docs/decisions/0018-caches-withdraw-nothing.md`):
//!
//! | the prefix | no answer yet | Valid, NotFound | Invalid | no cache, or expired |
//! | --- | --- | --- | --- | --- |
//! | is wanted for the first time | waits | leaves, and is vetted | is refused | leaves |
//! | is refused | | leaves, and is vetted | stays refused | stays refused |
//! | is out | | stays, and is vetted | stays, with a warning | stays |
//! | is wanted again, and vetted | | leaves | leaves, with a warning | leaves |
//!
//! A prefix stays vetted for as long as a site is configured with it.

use super::origin::{Origins, Validity};
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Why a prefix is not to be announced for the first time.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    /// In the first seconds.
    #[error("the RPKI caches have not answered yet")]
    Waiting,
    /// Its origin would be invalid.
    #[error("AS {asn} may not announce it ({roas}): make a ROA for it, or see to the RPKI cache")]
    Forbidden {
        /// Ours.
        asn: u32,
        /// What forbids it.
        roas: String,
    },
}

/// The gate between what is wanted and what neighbours are told.
#[derive(Debug)]
pub(crate) struct Admission {
    /// The origin of all that is announced: ours, on external sessions and on internal ones.
    asn: u32,
    origins: Option<Arc<Origins>>,
    settled: bool,
    vetted: BTreeSet<IpNet>,
    /// What leaves, each with why it would not leave if it were new.
    admitted: BTreeMap<IpNet, Option<Refusal>>,
    /// What is wanted and does not leave, each with the reason.
    refused: BTreeMap<IpNet, Refusal>,
}

impl Admission {
    /// For announcements of this AS. Without caches everything is settled.
    pub(crate) fn new(asn: u32, settled: bool) -> Admission {
        Admission {
            asn,
            origins: None,
            settled,
            vetted: BTreeSet::new(),
            admitted: BTreeMap::new(),
            refused: BTreeMap::new(),
        }
    }

    /// The caches say this now; `settled` is whether there is anything left to wait for.
    pub(crate) fn set_origins(&mut self, origins: Option<Arc<Origins>>, settled: bool) {
        let same = match (&self.origins, &origins) {
            (None, None) => true,
            (Some(old), Some(new)) => Arc::ptr_eq(old, new),
            _ => false,
        };
        if same && self.settled == settled {
            return;
        }
        (self.origins, self.settled) = (origins, settled);
        if self.origins.is_some() {
            let admitted: Vec<IpNet> = self.admitted.keys().copied().collect();
            for prefix in admitted {
                let doubt = self.judge(&prefix).err();
                let old = self.admitted.insert(prefix, doubt.clone()).flatten();
                if let (Some(why), None) = (doubt, old) {
                    tracing::warn!(%prefix, "stays announced as it was, though other networks may refuse it: {why}");
                }
            }
        }
        // A refusal outlives the word that it came from; waiting ends with it.
        let (known, refused) = (self.origins.is_some(), std::mem::take(&mut self.refused));
        for (prefix, why) in refused {
            match known || why == Refusal::Waiting {
                true => self.consider(prefix, Some(why)),
                false => drop(self.refused.insert(prefix, why)),
            }
        }
    }

    /// The sites have these prefixes: what is no site's any more has to be looked at again if it comes back.
    pub(crate) fn set_configured(&mut self, prefixes: impl IntoIterator<Item = IpNet>) {
        let configured: BTreeSet<IpNet> = prefixes.into_iter().map(|prefix| prefix.trunc()).collect();
        self.vetted.retain(|prefix| configured.contains(prefix));
    }

    /// A prefix is wanted. Does it leave?
    pub(crate) fn want(&mut self, prefix: IpNet) -> bool {
        if !self.admitted.contains_key(&prefix) && !self.refused.contains_key(&prefix) {
            self.consider(prefix, None);
        }
        self.admitted.contains_key(&prefix)
    }

    /// It is wanted no more.
    pub(crate) fn release(&mut self, prefix: &IpNet) {
        self.admitted.remove(prefix);
        self.refused.remove(prefix);
    }

    /// All that is wanted.
    pub(crate) fn wanted(&self) -> impl Iterator<Item = IpNet> {
        self.admitted.keys().chain(self.refused.keys()).copied()
    }

    /// What is wanted and does not leave, with the reasons.
    pub(crate) fn refused(&self) -> &BTreeMap<IpNet, Refusal> {
        &self.refused
    }

    /// Why a prefix that leaves would not if it were new, if that is so.
    pub(crate) fn doubt(&self, prefix: &IpNet) -> Option<&Refusal> {
        self.admitted.get(prefix)?.as_ref()
    }

    fn consider(&mut self, prefix: IpNet, before: Option<Refusal>) {
        match self.judge(&prefix) {
            Err(why) if !self.vetted.contains(&prefix) => {
                if matches!(why, Refusal::Forbidden { .. }) && before.as_ref() != Some(&why) {
                    tracing::error!(%prefix, "not announced: {why}");
                }
                self.refused.insert(prefix, why);
            }
            result => drop(self.admitted.insert(prefix, result.err())),
        }
    }

    fn judge(&mut self, prefix: &IpNet) -> Result<(), Refusal> {
        let Some(origins) = &self.origins else {
            return if self.settled { Ok(()) } else { Err(Refusal::Waiting) };
        };
        if origins.validate(prefix, Some(self.asn)) == Validity::Invalid {
            return Err(Refusal::Forbidden { asn: self.asn, roas: origins.forbidden_by(prefix) });
        }
        self.vetted.insert(*prefix);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
