//! The program: parse the command line, dispatch, exit with 0 (done), 1 (failed) or 2 (wrong usage or settings).

use oncelog::cli;
use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    cli::run(cli::parse())
}
