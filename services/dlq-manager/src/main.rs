//! `dlq-manager`: see the library.

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    match dlq_manager::main_with(dlq_manager::Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("dlq-manager: {error:#}");
            ExitCode::FAILURE
        }
    }
}
