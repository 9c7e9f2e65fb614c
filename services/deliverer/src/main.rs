//! The deliverer's own binary.

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    match deliverer::main_with(deliverer::Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("deliverer: {error:#}");
            ExitCode::FAILURE
        }
    }
}
