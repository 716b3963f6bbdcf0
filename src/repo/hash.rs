//! SHA-256 of several frames at once.
//!
//! The rounds of one SHA-256 wait for each other, and a processor waits with them. Those of several frames do not: four at a time with SHA
//! instructions, or sixteen in the lanes of wide registers, are twice as fast as one after the other (`docs/performance.md`). The digests
//! are the same.
//!
//! Whoever reads never depends on it: a digest that does not hold is made once more with `sha2` before anything is called damaged, and a
//! wrong one that happens to hold would be a collision. Whoever writes does: so each process first lets it prove itself against `sha2` on
//! this processor, and goes without it where they disagree.

use std::sync::LazyLock;

use super::object::Sha;

/// Frames that are hashed together: a mebibyte of them. As many as there are 32-bit lanes in 256 bits; more are no faster with SHA
/// instructions.
pub const AT_ONCE: usize = 8;
/// Fewer are as fast one after the other.
const WORTH_IT: usize = 4;

/// SHA-256 of each of at most [`AT_ONCE`] parts, in their order. What is behind them means nothing.
pub fn many(parts: &[&[u8]]) -> [Sha; AT_ONCE] {
    let mut found = [[0; 32]; AT_ONCE];
    if parts.len() < WORTH_IT || !*AGREES {
        parts.iter().zip(&mut found).for_each(|(part, found)| *found = Sha::of(part).0);
    } else {
        tape_sha256::hash_many(parts, &mut found[..parts.len()]);
    }
    found.map(Sha)
}

/// Whether it agrees with `sha2`, for as many parts as are ever hashed together, of equal and of different lengths.
static AGREES: LazyLock<bool> = LazyLock::new(|| {
    let bytes: Vec<u8> = (0..4096u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let equal: Vec<&[u8]> = (0..AT_ONCE).map(|part| &bytes[part..part + 1024]).collect();
    // Around the ends of blocks, where the padding goes.
    let lengths = [1000, 55, 56, 63, 64, 0, 119, 120];
    let different: Vec<&[u8]> = lengths.iter().enumerate().map(|(part, length)| &bytes[part..part + length]).collect();
    let agrees = |parts: &[&[u8]]| {
        let mut found = [[0; 32]; AT_ONCE];
        tape_sha256::hash_many(parts, &mut found[..parts.len()]);
        parts.iter().zip(found).all(|(part, found)| Sha::of(part).0 == found)
    };
    (WORTH_IT..=AT_ONCE).all(|count| agrees(&equal[..count]) && agrees(&different[..count]))
});

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn this_processor_can_hash_many() {
        assert!(*AGREES);
    }

    #[test]
    fn frames_of_full_length_agree() {
        let frames: Vec<Vec<u8>> =
            (0..AT_ONCE).map(|n| (0..128 << 10).map(|at| ((at * 31 + n * 7) >> 3) as u8).collect()).collect();
        let parts: Vec<&[u8]> = frames.iter().map(Vec::as_slice).collect();
        assert_eq!(many(&parts).to_vec(), parts.iter().map(|part| Sha::of(part)).collect::<Vec<_>>());
    }

    proptest! {
        #[test]
        fn whatever_the_lengths_they_agree(parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..700), 0..=AT_ONCE)) {
            let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
            let found = many(&parts);
            prop_assert_eq!(&found[..parts.len()], parts.iter().map(|part| Sha::of(part)).collect::<Vec<_>>());
        }
    }
}
