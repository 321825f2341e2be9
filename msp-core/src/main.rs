//! `msp-core`; see [`msp_core::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    msp_core::cli::main()
}
