//! Arithmetic of the instructions, for all lanes of a warp at once.

use super::{LANES, Lanes};

/// Computes the lanes of a result from those of up to four operands.
pub type Compute = fn(&[&Lanes; 4], &mut Lanes);
/// Compares two operands: a bit per lane.
pub type Compare = fn(&Lanes, &Lanes) -> u32;

macro_rules! compute {
    (|$a:ident $(, $b:ident $(, $c:ident $(, $d:ident)?)?)?| $value:expr) => {{
        fn make(from: &[&Lanes; 4], to: &mut Lanes) {
            for lane in 0..LANES {
                let $a = from[0][lane];
                $(let $b = from[1][lane]; $(let $c = from[2][lane]; $(let $d = from[3][lane];)?)?)?
                to[lane] = $value;
            }
        }
        make as Compute
    }};
}

macro_rules! compare {
    (|$a:ident, $b:ident| $value:expr) => {{
        fn make(a: &Lanes, b: &Lanes) -> u32 {
            (0..LANES).fold(0, |mask, lane| {
                let ($a, $b) = (a[lane], b[lane]);
                mask | u32::from($value) << lane
            })
        }
        make as Compare
    }};
}

fn f(bits: u64) -> f32 {
    f32::from_bits(bits as u32)
}

fn d(bits: u64) -> f64 {
    f64::from_bits(bits)
}

fn of(v: f32) -> u64 {
    u64::from(v.to_bits())
}

fn low(v: u64) -> u64 {
    v & 0xffff_ffff
}

fn w(v: u64) -> u32 {
    v as u32
}

/// A shift by as many bits as there are, or more, leaves nothing.
fn shl(v: u64, by: u64, bits: u64) -> u64 {
    if by >= bits { 0 } else { v << by }
}

fn shr(v: u64, by: u64, bits: u64) -> u64 {
    if by >= bits { 0 } else { v >> by }
}

/// `len` low bits of `a` put into `b` from bit `at` on.
fn insert(a: u64, b: u64, at: u64, len: u64, bits: u64) -> u64 {
    let ones = if len >= 64 { u64::MAX } else { (1 << len) - 1 };
    let mask = shl(ones, at & 0xff, bits);
    (b & !mask) | (shl(a, at & 0xff, bits) & mask)
}

/// The larger one; the number where the other is none, and +0 above -0.
fn max(a: f32, b: f32) -> f32 {
    if a == b { if a.is_sign_negative() { b } else { a } } else { a.max(b) }
}

fn min(a: f32, b: f32) -> f32 {
    if a == b { if a.is_sign_negative() { a } else { b } } else { a.min(b) }
}

/// `a b + c` and what its rounding to float64 left out.
fn exact(a: f32, b: f32, c: f32) -> (f64, f64) {
    // A product of two float32 fits in a float64. Knuth's two-sum.
    let (p, c) = (f64::from(a) * f64::from(b), f64::from(c));
    let sum = p + c;
    let part = sum - p;
    (sum, (p - (sum - part)) + (c - part))
}

/// Rounded down.
fn down((sum, rest): (f64, f64)) -> f32 {
    let near = sum as f32;
    let above = f64::from(near) > sum || (f64::from(near) == sum && rest < 0.0);
    if above { near.next_down() } else { near }
}

/// Rounded towards zero.
fn to_zero((sum, rest): (f64, f64)) -> f32 {
    if sum < 0.0 { -down((-sum, -rest)) } else { down((sum, rest)) }
}

/// 2^v, with what is below the normal range taken as zero.
fn exp2(v: f32) -> f32 {
    let flush = |v: f32| if v.is_subnormal() { 0.0f32.copysign(v) } else { v };
    flush(f64::from(flush(v)).exp2() as f32)
}

/// Arithmetic that has no predicate in it, by its name in PTX; the last part of the name is the type.
pub fn named(name: &str) -> Option<Compute> {
    Some(match name {
        "mov.f32" | "mov.u32" | "mov.b32" | "mov.b64" | "mov.u64" | "mov.f64" | "mov.u16" | "mov.b16"
        | "cvta.to.global.u64" | "cvt.u64.u32" | "cvt.u32.u16" | "cvt.u64.u16" => compute!(|a| a),
        "cvt.u32.u64" => compute!(|a| low(a)),
        "cvt.u16.u32" | "cvt.u16.u64" => compute!(|a| a & 0xffff),
        "cvt.s64.s32" => compute!(|a| i64::from(w(a) as i32) as u64),

        "add.s32" | "add.u32" => compute!(|a, b| low(a.wrapping_add(b))),
        "sub.s32" | "sub.u32" => compute!(|a, b| low(a.wrapping_sub(b))),
        "mul.lo.s32" | "mul.lo.u32" => compute!(|a, b| low(a.wrapping_mul(b))),
        "mad.lo.s32" | "mad.lo.u32" => compute!(|a, b, c| low(a.wrapping_mul(b).wrapping_add(c))),
        "mul.hi.u32" => compute!(|a, b| (low(a) * low(b)) >> 32),
        "mul.wide.u32" => compute!(|a, b| low(a) * low(b)),
        "mul.wide.s32" => compute!(|a, b| (i64::from(w(a) as i32) * i64::from(w(b) as i32)) as u64),
        "mad.wide.u32" => compute!(|a, b, c| (low(a) * low(b)).wrapping_add(c)),
        "div.u32" => compute!(|a, b| low(a).checked_div(low(b)).unwrap_or(0xffff_ffff)),
        "rem.u32" => compute!(|a, b| low(a).checked_rem(low(b)).unwrap_or(low(a))),
        "min.u32" | "min.u64" => compute!(|a, b| a.min(b)),
        "max.u32" | "max.u64" => compute!(|a, b| a.max(b)),
        "and.b32" | "and.b64" | "and.b16" => compute!(|a, b| a & b),
        "or.b32" | "or.b64" | "or.b16" => compute!(|a, b| a | b),
        "xor.b32" | "xor.b64" => compute!(|a, b| a ^ b),
        "not.b32" => compute!(|a| low(!a)),
        "not.b64" => compute!(|a| !a),
        "neg.s32" => compute!(|a| low(a.wrapping_neg())),
        "shl.b32" => compute!(|a, b| low(shl(a, low(b), 32))),
        "shr.u32" => compute!(|a, b| shr(a, low(b), 32)),
        "shl.b64" => compute!(|a, b| shl(a, low(b), 64)),
        "shr.u64" => compute!(|a, b| shr(a, low(b), 64)),
        "popc.b32" => compute!(|a| u64::from(w(a).count_ones())),
        "brev.b32" => compute!(|a| u64::from(w(a).reverse_bits())),
        "clz.b32" => compute!(|a| u64::from(w(a).leading_zeros())),
        // Places from the top to the highest bit that is set; all ones where there is none.
        "bfind.shiftamt.u32" => {
            compute!(|a| if w(a) == 0 { 0xffff_ffff } else { u64::from(w(a).leading_zeros()) })
        }
        "bfi.b32" => compute!(|a, b, c, e| low(insert(a, b, c, e, 32))),
        "bfi.b64" => compute!(|a, b, c, e| insert(a, b, c, e, 64)),

        "add.s64" | "add.u64" => compute!(|a, b| a.wrapping_add(b)),
        "sub.s64" | "sub.u64" => compute!(|a, b| a.wrapping_sub(b)),
        "mul.lo.s64" | "mul.lo.u64" => compute!(|a, b| a.wrapping_mul(b)),
        "mad.lo.s64" => compute!(|a, b, c| a.wrapping_mul(b).wrapping_add(c)),
        "div.u64" => compute!(|a, b| a.checked_div(b).unwrap_or(u64::MAX)),
        "rem.u64" => compute!(|a, b| a.checked_rem(b).unwrap_or(a)),

        "add.f32" => compute!(|a, b| of(f(a) + f(b))),
        "sub.f32" => compute!(|a, b| of(f(a) - f(b))),
        "mul.f32" => compute!(|a, b| of(f(a) * f(b))),
        "div.rn.f32" => compute!(|a, b| of(f(a) / f(b))),
        "fma.rn.f32" => compute!(|a, b, c| of(f(a).mul_add(f(b), f(c)))),
        "fma.rm.f32" => compute!(|a, b, c| of(down(exact(f(a), f(b), f(c))))),
        "add.rz.f32" => compute!(|a, b| of(to_zero(exact(f(a), 1.0, f(b))))),
        "neg.f32" => compute!(|a| of(-f(a))),
        "abs.f32" => compute!(|a| of(f(a).abs())),
        "sqrt.rn.f32" => compute!(|a| of(f(a).sqrt())),
        "rcp.rn.f32" => compute!(|a| of(1.0 / f(a))),
        "max.f32" => compute!(|a, b| of(max(f(a), f(b)))),
        "min.f32" => compute!(|a, b| of(min(f(a), f(b)))),
        "lg2.approx.f32" => compute!(|a| of(f64::from(f(a)).log2() as f32)),
        "ex2.approx.f32" => compute!(|a| of(f64::from(f(a)).exp2() as f32)),
        "ex2.approx.ftz.f32" => compute!(|a| of(exp2(f(a)))),
        // A value that is not a number saturates to zero.
        "cvt.sat.f32.f32" => compute!(|a| of(if f(a) > 0.0 { f(a).min(1.0) } else { 0.0 })),
        "cvt.rn.f32.s32" => compute!(|a| of(w(a) as i32 as f32)),
        "cvt.rn.f32.u32" => compute!(|a| of(w(a) as f32)),
        "cvt.rn.f32.f64" => compute!(|a| of(d(a) as f32)),
        "cvt.f32.f16" => compute!(|a| of(half::f16::from_bits(a as u16).to_f32())),

        "add.f64" => compute!(|a, b| (d(a) + d(b)).to_bits()),
        "sub.f64" => compute!(|a, b| (d(a) - d(b)).to_bits()),
        "mul.f64" => compute!(|a, b| (d(a) * d(b)).to_bits()),
        "div.rn.f64" => compute!(|a, b| (d(a) / d(b)).to_bits()),
        "fma.rn.f64" => compute!(|a, b, c| d(a).mul_add(d(b), d(c)).to_bits()),
        "sqrt.rn.f64" => compute!(|a| d(a).sqrt().to_bits()),
        "rcp.rn.f64" => compute!(|a| (1.0 / d(a)).to_bits()),
        "abs.f64" => compute!(|a| d(a).abs().to_bits()),
        "neg.f64" => compute!(|a| (-d(a)).to_bits()),
        "cvt.f64.f32" => compute!(|a| f64::from(f(a)).to_bits()),
        "cvt.rn.f64.u32" => compute!(|a| f64::from(w(a)).to_bits()),
        // Towards 0, and to the nearest end of what the type holds, as `as` does.
        "cvt.rzi.u32.f64" => compute!(|a| u64::from(d(a) as u32)),
        "cvt.rn.f64.u64" => compute!(|a| (a as f64).to_bits()),
        _ => return None,
    })
}

/// A comparison by the part of its name after `setp.`.
#[allow(clippy::neg_cmp_op_on_partial_ord)] // What is not less may be no number.
pub fn comparison(name: &str) -> Option<Compare> {
    Some(match name {
        "eq.s16" | "eq.s32" | "eq.u32" | "eq.b32" | "eq.s64" | "eq.b64" | "eq.u64" => compare!(|a, b| a == b),
        "ne.s16" | "ne.s32" | "ne.u32" | "ne.b32" | "ne.s64" | "ne.b64" | "ne.u64" => compare!(|a, b| a != b),
        "lt.u32" | "lt.u64" => compare!(|a, b| a < b),
        "le.u32" | "le.u64" => compare!(|a, b| a <= b),
        "gt.u32" | "gt.u64" => compare!(|a, b| a > b),
        "ge.u32" | "ge.u64" => compare!(|a, b| a >= b),
        "lt.s32" => compare!(|a, b| (w(a) as i32) < w(b) as i32),
        "le.s32" => compare!(|a, b| w(a) as i32 <= w(b) as i32),
        "gt.s32" => compare!(|a, b| w(a) as i32 > w(b) as i32),
        "ge.s32" => compare!(|a, b| w(a) as i32 >= w(b) as i32),
        "eq.f32" => compare!(|a, b| f(a) == f(b)),
        "lt.f32" => compare!(|a, b| f(a) < f(b)),
        "le.f32" => compare!(|a, b| f(a) <= f(b)),
        "gt.f32" => compare!(|a, b| f(a) > f(b)),
        "ge.f32" => compare!(|a, b| f(a) >= f(b)),
        "neu.f32" => compare!(|a, b| f(a) != f(b)),
        // With u: true also where one is no number.
        "ltu.f32" => compare!(|a, b| !(f(a) >= f(b))),
        "leu.f32" => compare!(|a, b| !(f(a) > f(b))),
        "gtu.f32" => compare!(|a, b| !(f(a) <= f(b))),
        "geu.f32" => compare!(|a, b| !(f(a) < f(b))),
        "nan.f32" => compare!(|a, b| f(a).is_nan() || f(b).is_nan()),
        "num.f32" => compare!(|a, b| !f(a).is_nan() && !f(b).is_nan()),
        "eq.f64" => compare!(|a, b| d(a) == d(b)),
        "neu.f64" => compare!(|a, b| d(a) != d(b)),
        "lt.f64" => compare!(|a, b| d(a) < d(b)),
        "le.f64" => compare!(|a, b| d(a) <= d(b)),
        "gt.f64" => compare!(|a, b| d(a) > d(b)),
        "ge.f64" => compare!(|a, b| d(a) >= d(b)),
        "leu.f64" => compare!(|a, b| !(d(a) > d(b))),
        "gtu.f64" => compare!(|a, b| !(d(a) <= d(b))),
        "nan.f64" => compare!(|a, b| d(a).is_nan() || d(b).is_nan()),
        _ => return None,
    })
}
