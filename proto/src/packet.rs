//! IPv4/IPv6 views.
