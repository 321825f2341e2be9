//! Who the two ends of a session are to each other, and which routes may pass (RFC 9234): what came from a provider or a
//! peer goes to customers only, or it is a leak.

use serde::{Deserialize, Serialize};

/// What an end is towards the other (RFC 9234, section 4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// It carries the other's traffic to everywhere.
    Provider = 0,
    /// A route server of an exchange.
    RouteServer = 1,
    /// A client of one.
    RouteServerClient = 2,
    /// The other carries its traffic to everywhere.
    Customer = 3,
    /// Each carries traffic to the other's own and its customers' networks.
    Peer = 4,
}

impl Role {
    /// The role that an octet stands for.
    pub fn from_wire(octet: u8) -> Option<Role> {
        use Role::{Customer, Peer, Provider, RouteServer, RouteServerClient};
        [Provider, RouteServer, RouteServerClient, Customer, Peer].get(usize::from(octet)).copied()
    }

    /// What the other end has to be (section 4.2, table 2).
    pub fn counterpart(self) -> Role {
        match self {
            Role::Provider => Role::Customer,
            Role::RouteServer => Role::RouteServerClient,
            Role::RouteServerClient => Role::RouteServer,
            Role::Customer => Role::Provider,
            Role::Peer => Role::Peer,
        }
    }

    /// The ONLY_TO_CUSTOMER of a route that came in, where this is our role; an error if it is a leak, which is not to
    /// be used (section 5, ingress).
    pub fn ingress(self, only_to_customer: Option<u32>, remote_as: u32) -> Result<Option<u32>, Leak> {
        match (self, only_to_customer) {
            (Role::Provider | Role::RouteServer, Some(set_by)) => Err(Leak { set_by }),
            (Role::Peer, Some(set_by)) if set_by != remote_as => Err(Leak { set_by }),
            (Role::Customer | Role::Peer | Role::RouteServerClient, None) => Ok(Some(remote_as)),
            (_, as_it_is) => Ok(as_it_is),
        }
    }

    /// The ONLY_TO_CUSTOMER of a route that goes out, where this is our role; an error if it must not (section 5,
    /// egress).
    pub fn egress(self, only_to_customer: Option<u32>, local_as: u32) -> Result<Option<u32>, Leak> {
        match (self, only_to_customer) {
            (Role::Customer | Role::Peer | Role::RouteServerClient, Some(set_by)) => Err(Leak { set_by }),
            (Role::Provider | Role::Peer | Role::RouteServer, None) => Ok(Some(local_as)),
            (_, as_it_is) => Ok(as_it_is),
        }
    }
}

/// A route goes, or came, where it must not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a leak: AS{set_by} let it go to customers only (RFC 9234)")]
pub struct Leak {
    /// Who said that it is for customers only.
    pub set_by: u32,
}

#[cfg(test)]
mod tests {
    use super::*;
    use Role::{Customer, Peer, Provider, RouteServer, RouteServerClient};

    const US: u32 = 64500;
    const NEIGHBOR: u32 = 64501;
    const FAR: u32 = 64999;

    /// RFC 9234, section 5, line by line.
    #[test]
    fn routes_go_downhill_only_once_they_did() {
        for (role, came, expected) in [
            (Provider, Some(FAR), Err(Leak { set_by: FAR })),
            (RouteServer, Some(FAR), Err(Leak { set_by: FAR })),
            (Peer, Some(FAR), Err(Leak { set_by: FAR })),
            (Peer, Some(NEIGHBOR), Ok(Some(NEIGHBOR))),
            (Customer, None, Ok(Some(NEIGHBOR))),
            (Peer, None, Ok(Some(NEIGHBOR))),
            (RouteServerClient, None, Ok(Some(NEIGHBOR))),
            (Customer, Some(FAR), Ok(Some(FAR))),
            (Provider, None, Ok(None)),
        ] {
            assert_eq!(role.ingress(came, NEIGHBOR), expected, "{role:?} {came:?}");
        }
        for (role, has, expected) in [
            (Provider, None, Ok(Some(US))),
            (Peer, None, Ok(Some(US))),
            (RouteServer, None, Ok(Some(US))),
            (Customer, None, Ok(None)),
            (Customer, Some(FAR), Err(Leak { set_by: FAR })),
            (Peer, Some(FAR), Err(Leak { set_by: FAR })),
            (RouteServerClient, Some(FAR), Err(Leak { set_by: FAR })),
            (Provider, Some(FAR), Ok(Some(FAR))),
        ] {
            assert_eq!(role.egress(has, US), expected, "{role:?} {has:?}");
        }
    }

    #[test]
    fn counterparts_are_each_others() {
        for octet in 0..5 {
            let role = Role::from_wire(octet).expect("a role");
            assert_eq!((role as u8, role.counterpart().counterpart()), (octet, role));
        }
        assert_eq!(Role::from_wire(5), None);
    }
}
