//! The `oncegate` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    oncegate::cli::main()
}
