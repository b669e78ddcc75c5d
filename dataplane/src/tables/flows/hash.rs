//! Hashes of flow keys: two or four multiplications with a secret seed, so that nobody outside can aim at a
//! bucket.

use crate::batch::Key;

/// Digits of pi: nothing up the sleeve.
const PI: [u64; 3] = [0x243f_6a88_85a3_08d3, 0x1319_8a2e_0370_7344, 0xa409_3822_299f_31d0];

/// Of a key with IPv4 addresses.
#[inline(always)]
pub(super) fn v4(seed: u64, key: &Key) -> u64 {
    let last4 = |addr: &[u8; 16]| u64::from(u32::from_ne_bytes([addr[12], addr[13], addr[14], addr[15]]));
    let addresses = last4(&key.src.0) | last4(&key.dst.0) << 32;
    // Twice: one folded product leaves keys that differ in few bits of one factor too close together.
    let mixed = fold_multiply(addresses ^ seed, ports(key) ^ seed.rotate_left(32) ^ PI[0]);
    fold_multiply(mixed, PI[1] | 1)
}

/// Of a key with any addresses.
#[inline(always)]
pub(super) fn v6(seed: u64, key: &Key) -> u64 {
    let word = |addr: &[u8; 16], half: usize| {
        u64::from_ne_bytes(addr[half * 8..half * 8 + 8].try_into().expect("8 bytes of 16"))
    };
    let low = fold_multiply(word(&key.src.0, 1) ^ seed, word(&key.dst.0, 1) ^ PI[0]);
    let high = fold_multiply(word(&key.src.0, 0) ^ PI[1], word(&key.dst.0, 0) ^ seed.rotate_left(32));
    let mixed = fold_multiply(low ^ high.rotate_left(23) ^ PI[2], ports(key) ^ seed.rotate_left(17) ^ PI[0]);
    fold_multiply(mixed, PI[1] | 1)
}

#[inline(always)]
fn ports(key: &Key) -> u64 {
    u64::from(key.sport) | u64::from(key.dport) << 16 | u64::from(key.proto) << 32
}

/// The product's two halves, folded: every bit of the result depends on every bit of both factors.
#[inline(always)]
fn fold_multiply(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    (product as u64) ^ (product >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Addr;

    /// Buckets of a table at its capacity: keys that differ in few bits have to be spread as random ones are,
    /// of which eight a bucket would hold more than 16 once in a hundred.
    #[test]
    fn similar_keys_are_spread_like_random_ones() {
        const BUCKETS: usize = 1 << 12;
        for (name, hash) in [("v4", v4 as fn(u64, &Key) -> u64), ("v6", v6)] {
            for seed in [0, 1, 0x5eed, u64::MAX] {
                for shape in 0..3 {
                    let mut low = vec![0u32; BUCKETS];
                    let mut high = vec![0u32; BUCKETS];
                    for n in 0..8 * BUCKETS as u32 {
                        let [a, b, c, d] = n.to_be_bytes();
                        let key = match shape {
                            // One client, one server: ports only.
                            0 => Key {
                                src: Addr::v4([10, 0, 0, 1]),
                                dst: Addr::v4([10, 96, 0, 1]),
                                sport: n as u16,
                                dport: 80 + (n >> 16) as u16,
                                proto: 6,
                            },
                            // A scan of addresses.
                            1 => Key {
                                src: Addr::v4([10, b, c, d]),
                                dst: Addr::v4([10, 96, 0, 1]),
                                sport: 1024,
                                dport: 80,
                                proto: 6,
                            },
                            _ => Key {
                                src: Addr::v4([10, 0, 0, d]),
                                dst: Addr::v4([10, 96, a, b]),
                                sport: 1024 + u16::from(c),
                                dport: 80,
                                proto: 17,
                            },
                        };
                        let hash = hash(seed, &key);
                        low[hash as usize % BUCKETS] += 1;
                        high[(hash >> 48) as usize % BUCKETS] += 1;
                    }
                    for (which, counts) in [("low", low), ("high", high)] {
                        let crowded = counts.iter().filter(|count| **count > 16).count();
                        assert!(
                            crowded < BUCKETS / 40,
                            "{name} {which} seed {seed} shape {shape}: {crowded}"
                        );
                        let empty = counts.iter().filter(|count| **count == 0).count();
                        assert!(
                            empty < BUCKETS / 100,
                            "{name} {which} seed {seed} shape {shape}: {empty} empty"
                        );
                    }
                }
            }
        }
    }
}
