//! The allocator of every program that has this crate in it. An event passes through some forty allocations that live
//! for milliseconds and are freed by another thread than the one that made them; the C library's allocator spent a
//! fifth of our processor time on those (docs/performance.md).

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;
