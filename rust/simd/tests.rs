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
            s.sqrt(a),
            s.abs(a),
            s.copysign(a, b),
            s.select(s.lt(a, b), a, b),
            s.select(s.is_nan(a), b, a),
            s.select(s.lanes(self.n / 2, self.n), a, b),
            s.dot_bfloat16(s.bfloat16_pairs(a, b), s.bfloat16_pairs(b, c), c),
        ];
        let mut transposed = [a; LANES];
        transposed[self.n % LANES] = b;
        s.transpose(&mut transposed);
        let mut bits = Vec::new();
        for x in vectors.into_iter().chain(transposed) {
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

/// Where the bits are that are set.
struct PlacesOfBits(u64, usize);

impl Op for PlacesOfBits {
    type Output = Vec<usize>;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Vec<usize> {
        let mut places = [0; BYTES];
        let count = s.places_of_bits(self.0, self.1, &mut places);
        places[..count].to_vec()
    }
}

#[test]
fn instruction_sets_find_the_bits_that_are_set() {
    let mut bits = u64::MAX;
    for base in [0, 1, usize::MAX >> 2] {
        for _ in 0..200 {
            let expected: Vec<usize> = (0..BYTES).filter(|i| bits >> i & 1 != 0).map(|i| base + i).collect();
            for isa in available() {
                assert_eq!(dispatch_on(isa, PlacesOfBits(bits, base)), expected, "{isa:?} {bits:x}");
            }
            bits = bits.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407)
                & bits.rotate_left(9);
            bits ^= bits << 13 | 1;
        }
        bits = 0;
    }
}

/// The bits of [`Simd::bfloat16_pairs`] of two numbers, and of a dot product with 1 and 2 onto 0.5.
struct Pairs(f32, f32);

impl Op for Pairs {
    type Output = (u32, f32);

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> (u32, f32) {
        let mut out = [0.0; LANES];
        let pairs = s.bfloat16_pairs(s.splat(self.0), s.splat(self.1));
        s.put(&mut out, pairs);
        let bits = out[3].to_bits();
        s.put(&mut out, s.dot_bfloat16(pairs, s.bfloat16_pairs(s.splat(1.0), s.splat(2.0)), s.splat(0.5)));
        (bits, out[3])
    }
}

#[test]
fn bfloat16_is_rounded_to_nearest_even() {
    for isa in available() {
        // 1 + 2⁻⁸ is halfway and goes to even, 1 + 3 · 2⁻⁸ too; 2⁻¹³⁰ is subnormal.
        let cases = [
            (1.0, 0x3F80),
            (-3.140_625, 0xC049),
            (1.0 + 1.0 / 256.0, 0x3F80),
            (1.0 + 3.0 / 256.0, 0x3F82),
            (1.004, 0x3F81),
            (f32::MAX, 0x7F80),
            (f32::NEG_INFINITY, 0xFF80),
            (7.3e-40, 0),
            (f32::from_bits(0x7F80_0001), 0x7FC0),
        ];
        for (x, expected) in cases {
            assert_eq!(dispatch_on(isa, Pairs(x, 2.0)).0, 0x4000_0000 | expected, "{x} {isa:?}");
            assert_eq!(dispatch_on(isa, Pairs(2.0, x)).0, expected << 16 | 0x4000, "{x} {isa:?}");
            assert_eq!(dispatch_bfloat16(Pairs(x, 2.0)).0, 0x4000_0000 | expected, "{x}");
        }
        assert_eq!(dispatch_on(isa, Pairs(3.0, -5.0)).1, 0.5 - 10.0 + 3.0);
    }
}

/// Many dots of any bits, to compare the instruction with what stands for it.
struct Dots;

impl Op for Dots {
    type Output = Vec<u32>;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Vec<u32> {
        let mut state = 1u64;
        let mut numbers = || {
            let mut out = [0.0; LANES];
            for x in &mut out {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                // Half of them of any size, half of them near 1, so that sums round.
                let bits = (state >> 32) as u32;
                let near = bits & 0x807F_FFFF | (120 + (bits >> 24) % 16) << 23;
                *x = f32::from_bits(if state >> 20 & 1 == 0 { bits } else { near });
            }
            s.get(&out)
        };
        let mut bits = Vec::new();
        for _ in 0..20_000 {
            let (a, b) = (s.bfloat16_pairs(numbers(), numbers()), s.bfloat16_pairs(numbers(), numbers()));
            let mut out = [0.0; LANES];
            s.put(&mut out, s.dot_bfloat16(a, b, numbers()));
            bits.extend(out.map(canonical));
        }
        bits
    }
}

#[test]
fn the_instruction_for_bfloat16_gives_the_bits_of_its_emulation() {
    let expected = dispatch_on(Isa(Kind::Portable), Dots);
    assert!(dispatch_bfloat16(Dots) == expected);
    for isa in available() {
        assert!(dispatch_on(isa, Dots) == expected, "{isa:?}");
    }
}

/// `sum` and so many times the same products, of `a` without sign.
#[inline(always)]
fn dots<S: Simd>(s: S, bits: u32, sum: S::I32, a: S::Bytes, b: S::Bytes, times: usize) -> S::I32 {
    let mut dots = s.begin_dots(bits, sum);
    for _ in 0..times {
        dots = s.dot_bytes(bits, dots, a, b);
    }
    let mut sum = s.end_dots(bits, sum, dots);
    if bits == 8 && S::CENTRED {
        for _ in 0..2 * times {
            sum = s.end_dots(7, sum, s.dot_bytes(7, s.begin_dots(7, sum), s.repeat_bytes([64; 4]), b));
        }
    }
    sum
}

/// What one instruction set makes of bytes; the sums have to be the same with the instruction for them.
struct Bytes {
    a: [u8; BYTES],
    b: [u8; BYTES],
}

impl Op for Bytes {
    type Output = Vec<u32>;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Vec<u32> {
        let (a, b) = (s.bytes(&self.a), s.bytes(&self.b));
        let four = s.repeat_bytes([-127, 3, 127, -1]);
        let nibbles = s.shift_right_bytes(a, 4, 15);
        let table: [u8; LANES] = std::array::from_fn(|i| (17 * i) as u8);
        let high = s.shift_left_bytes(a, 3, 0b0111_0000);
        let zero = s.splat_i32(0);
        let mut sums = vec![
            dots(s, 8, s.splat_i32(-5), a, b, 3),
            dots(s, 8, zero, a, four, 1),
            dots(s, 8, zero, s.look_up(&table, nibbles), b, 1),
            dots(s, 8, zero, s.or_bytes(nibbles, high), four, 1),
            dots(s, 8, zero, s.shift_left_bytes(a, 1, 0xFF), b, 1),
        ];
        // The largest codes too, as often as they may be added up in 16 bits.
        for (bits, times) in [(1, 8), (2, 8), (3, 8), (4, 8), (5, 4), (6, 2), (7, 1)] {
            assert!(S::dots_at_once(bits) >= times);
            let codes = s.shift_right_bytes(a, 8 - bits, 0xFF);
            sums.push(dots(s, bits, s.splat_i32(7), codes, b, times));
        }
        let mut bits = Vec::new();
        let mut keep = |x: S::F32| {
            let mut out = [0.0; LANES];
            s.put(&mut out, x);
            bits.extend(out.map(canonical));
        };
        sums.into_iter().for_each(|sum| keep(s.to_float(sum)));
        let (some, _) = self.a.as_chunks::<LANES>();
        keep(s.floats_of_bytes(&some[0]));
        keep(s.floats_of_signed_bytes(&some[1]));
        keep(s.halves(self.a.first_chunk().expect("64 bytes")));
        keep(s.bfloat16(self.a.first_chunk().expect("64 bytes")));
        let near =
            s.div(s.floats_of_signed_bytes(&some[2].map(|x| if x == 0x80 { 0x81 } else { x })), s.splat(2.0));
        bits.extend(s.signed_bytes(s.round(near)).map(|x| x as u32));
        bits
    }
}

#[test]
fn instruction_sets_agree_on_bytes() {
    let mut state = 1u64;
    let mut byte = |least: u8| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let byte = (state >> 56) as u8;
        if least == 0 || byte != 0x80 { byte } else { 0x81 }
    };
    for round in 0..300 {
        // At the ends of the range, and anywhere in it.
        let mut a = [0xFF; BYTES];
        let mut b = [if round % 2 == 0 { 127 } else { 0x81 }; BYTES];
        if round > 3 {
            a.fill_with(|| byte(0));
            b.fill_with(|| byte(1));
        }
        let expected = dispatch_on(Isa(Kind::Portable), Bytes { a, b });
        assert_eq!(dispatch_bytes(Bytes { a, b }), expected);
        for isa in available() {
            assert_eq!(dispatch_on(isa, Bytes { a, b }), expected, "{isa:?}");
        }
    }
}

#[test]
fn an_unknown_name_is_an_error() {
    let message = Isa::from_name("sse9").unwrap_err().to_string();
    assert!(message.contains("sse9") && message.contains("portable"), "{message}");
}
