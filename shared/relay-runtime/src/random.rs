//! Random numbers for ids, secrets and jitter, from the operating system's seeded generator (ChaCha). The pure
//! core gets them as arguments.

#[expect(clippy::disallowed_methods, reason = "the one place that everybody else is sent to")]
fn random<T>() -> T
where
    rand::distr::StandardUniform: rand::distr::Distribution<T>,
{
    rand::random()
}

/// Ten bytes: what an id of version 7 needs.
pub fn bytes10() -> [u8; 10] {
    random()
}

/// Twelve bytes: what a nonce needs.
pub fn bytes12() -> [u8; 12] {
    random()
}

/// 32 bytes: what a secret needs.
pub fn bytes32() -> [u8; 32] {
    random()
}

/// 16 bytes: what an id of version 4 needs.
pub fn bytes16() -> [u8; 16] {
    random()
}

/// A number in `0.0..1.0`, for jitter.
pub fn unit() -> f64 {
    random()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_differ_and_stay_in_range() {
        assert_ne!(bytes10(), bytes10());
        assert_ne!(bytes32(), bytes32());
        assert!((0..1000).all(|_| (0.0..1.0).contains(&unit())));
    }
}
