//! msp-core
fn main() {}
