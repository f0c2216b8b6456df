//! Every instruction set against the portable one, lane by lane.

use super::*;

/// What one instruction set makes of two vectors and a count.
struct Everything {
    a: [f32; LANES],
    b: [f32; LANES],
    n: usize,
}

impl Op for Everything {
    type Output = Vec<u32>;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Vec<u32> {
        let (a, b) = (s.get(&self.a), s.get(&self.b));
        let c = s.get(&self.a[..self.n]);
        let vectors = [
            c,
            s.add(a, b),
            s.sub(a, b),
            s.mul(a, b),
            s.div(a, b),
            s.fma(a, b, c),
            s.max(a, b),
            s.min(a, b),
            s.abs(a),
            s.copysign(a, b),
            s.select(s.lt(a, b), a, b),
            s.select(s.is_nan(a), b, a),
            s.select(s.lanes(self.n / 2, self.n), a, b),
        ];
        let mut bits = Vec::new();
        for x in vectors {
            let mut out = [7.0; LANES];
            s.put(&mut out[..self.n], x);
            bits.extend(out.map(canonical));
            s.put(&mut out, x);
            bits.extend(out.map(canonical));
        }
        bits.push(canonical(s.reduce_sum(a)));
        bits.push(canonical(s.reduce_max(a)));
        let mut out = [0.0; LANES];
        s.put(&mut out, s.add_to_exponent(s.splat(1.25), b));
        bits.extend(out.map(canonical));
        bits
    }
}

/// Bits, with every NaN the same.
fn canonical(x: f32) -> u32 {
    if x.is_nan() { f32::NAN.to_bits() } else { x.to_bits() }
}

#[test]
fn instruction_sets_agree_on_every_operation() {
    let special = [
        0.0,
        -0.0,
        1.0,
        -1.5,
        2.5,
        0.5,
        3.5,
        -0.5,
        1e-40,
        -1e-45,
        1e38,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
        f32::MAX,
        0.1,
    ];
    for shift in 0..LANES {
        let a: [f32; LANES] = std::array::from_fn(|i| special[i]);
        let b: [f32; LANES] = std::array::from_fn(|i| special[(i + shift) % LANES]);
        for n in 0..=LANES {
            let expected = dispatch_on(Isa(Kind::Portable), Everything { a, b, n });
            for isa in available() {
                assert_eq!(dispatch_on(isa, Everything { a, b, n }), expected, "{isa:?} {shift} {n}");
            }
        }
    }
}

/// The bytes of a block that lie between two.
struct Between([u8; BYTES], u8, u8);

impl Op for Between {
    type Output = u64;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> u64 {
        s.between(s.bytes(&self.0), self.1, self.2)
    }
}

#[test]
fn instruction_sets_find_the_bytes_between_two() {
    for (first, last) in [(b'a', b'z'), (0, 0), (0x80, 0xFF), (b'\t', b'\r'), (255, 255), (0, 255)] {
        for start in 0..=255u8 {
            let block: [u8; BYTES] = std::array::from_fn(|i| start.wrapping_add((7 * i) as u8));
            let bit = |i: usize| u64::from((first..=last).contains(&block[i])) << i;
            let expected: u64 = (0..BYTES).map(bit).sum();
            for isa in available() {
                assert_eq!(dispatch_on(isa, Between(block, first, last)), expected, "{isa:?} {first} {last}");
            }
        }
    }
}

#[test]
fn an_unknown_name_is_an_error() {
    let message = Isa::from_name("sse9").unwrap_err().to_string();
    assert!(message.contains("sse9") && message.contains("portable"), "{message}");
}
