//! mspmb
fn main() {}
