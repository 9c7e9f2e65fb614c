//! Makes cargo look at the migrations again when they change: they are embedded in the binary.

fn main() {
    println!("cargo:rerun-if-changed=../../migrations");
}
