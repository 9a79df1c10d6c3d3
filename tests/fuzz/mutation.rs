//! Damage done to inputs, the same for the same seed.

use ihip_tests::support::sample::Random;

/// Numbers at the edges of their ranges, which lengths and counts are most often wrong by.
const EDGES: [u64; 10] = [0, 1, 0x7f, 0x80, 0xff, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff, 1 << 40, u64::MAX];
/// Pieces of the languages among the inputs.
const PIECES: [&str; 12] = ["{", "}", "\"", ";", "=", "[", "]]", "\n", "0", "18446744073709551616", "é", "keep 1 "];

/// One of `seeds` with one to six changes.
pub(super) fn mutated(seeds: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let mut bytes = seeds[below(random, seeds.len())].clone();
    for _ in 0..=below(random, 6) {
        change(&mut bytes, seeds, random);
    }
    bytes
}

fn change(bytes: &mut Vec<u8>, seeds: &[Vec<u8>], random: &mut Random) {
    let at = below(random, bytes.len() + 1);
    let end = (at + below(random, 64)).min(bytes.len());
    match below(random, 8) {
        0 if at < bytes.len() => bytes[at] ^= 1 << below(random, 8),
        1 if at < bytes.len() => bytes[at] = below(random, 256) as u8,
        2 => {
            let width = [1, 2, 4, 8][below(random, 4)];
            let edge = EDGES[below(random, EDGES.len())].to_le_bytes();
            let end = (at + width).min(bytes.len());
            bytes[at..end].copy_from_slice(&edge[..end - at]);
        }
        3 => bytes.truncate(at),
        4 => drop(bytes.drain(at..end)),
        5 => {
            let copied = bytes[at..end].to_vec();
            let to = below(random, bytes.len() + 1);
            bytes.splice(to..to, copied);
        }
        6 => {
            let piece = PIECES[below(random, PIECES.len())];
            bytes.splice(at..at, piece.bytes());
        }
        _ => {
            let other = &seeds[below(random, seeds.len())];
            let from = below(random, other.len() + 1);
            bytes.truncate(at);
            bytes.extend(&other[from..]);
        }
    }
}

fn below(random: &mut Random, end: usize) -> usize {
    (random.next() % end as u64) as usize
}
