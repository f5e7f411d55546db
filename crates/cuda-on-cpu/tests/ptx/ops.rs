//! Single instructions beside what the ISA says of them.

use cuda_on_cpu::ptx::LANES;
use cuda_on_cpu::ptx::ops::{comparison, named};

fn one(name: &str, from: [u64; 4]) -> u64 {
    let mut out = [0; LANES];
    named(name).unwrap()(&from.map(|v| [v; LANES]).each_ref(), &mut out);
    out[7]
}

fn of(v: f32) -> u64 {
    v.to_bits().into()
}

fn floats(name: &str, from: [f32; 3]) -> f32 {
    f32::from_bits(one(name, [of(from[0]), of(from[1]), of(from[2]), 0]) as u32)
}

#[test]
fn directed_rounding_goes_its_way_by_less_than_a_unit() {
    let tiny = 2f32.powi(-40);
    for v in [1.0f32, -1.0, 1.5, -1e-3, 3e8] {
        assert_eq!(floats("fma.rm.f32", [v, 1.0, 0.0]), v);
        assert_eq!(floats("fma.rm.f32", [v, 1.0, tiny * v.abs()]), v);
        assert_eq!(floats("fma.rm.f32", [v, 1.0, -tiny * v.abs()]), v.next_down());
        assert_eq!(floats("add.rz.f32", [v, tiny * v, 0.0]), v);
        let inward = if v > 0.0 { v.next_down() } else { v.next_up() };
        assert_eq!(floats("add.rz.f32", [v, -tiny * v, 0.0]), inward);
    }
    assert_eq!(floats("add.rz.f32", [0.0, 0.0, 0.0]), 0.0);
}

#[test]
fn bits_go_where_they_are_told() {
    assert_eq!(one("bfi.b32", [0b101, 0xffff_ffff, 4, 3]), 0xffff_ffdf);
    assert_eq!(one("bfi.b64", [0xabcd, 0x1234_5678, 32, 32]), 0xabcd_1234_5678);
    assert_eq!(one("bfi.b32", [1, 7, 40, 3]), 7);
    assert_eq!(one("shl.b32", [3, 31, 0, 0]), 0x8000_0000);
    assert_eq!([one("shl.b32", [3, 32, 0, 0]), one("shr.u64", [u64::MAX, 64, 0, 0])], [0, 0]);
    assert_eq!(one("sub.s32", [1, 2, 0, 0]), 0xffff_ffff);
    assert_eq!(one("mul.hi.u32", [0xffff_ffff, 0xffff_ffff, 0, 0]), 0xffff_fffe);
}

#[test]
fn extremes_and_saturation_pass_over_what_is_no_number() {
    assert_eq!(floats("max.f32", [f32::NAN, 2.0, 0.0]), 2.0);
    assert!(floats("max.f32", [-0.0, 0.0, 0.0]).is_sign_positive());
    assert!(floats("min.f32", [0.0, -0.0, 0.0]).is_sign_negative());
    assert_eq!(
        [f32::NAN, -1.0, 0.25, 7.0].map(|v| floats("cvt.sat.f32.f32", [v, 0.0, 0.0])),
        [0.0, 0.0, 0.25, 1.0]
    );
    assert_eq!(
        [-200.0, 1.0, f32::NEG_INFINITY].map(|v| floats("ex2.approx.ftz.f32", [v, 0.0, 0.0])),
        [0.0, 2.0, 0.0]
    );
}

#[test]
fn comparisons_with_what_is_no_number_are_false_unless_unordered() {
    let holds = |name: &str, a: f32, b: f32| comparison(name).unwrap()(&[of(a); LANES], &[of(b); LANES]) != 0;
    for name in ["eq.f32", "lt.f32", "le.f32", "gt.f32", "ge.f32"] {
        assert!(!holds(name, f32::NAN, 1.0), "{name}");
    }
    for name in ["neu.f32", "ltu.f32", "leu.f32", "gtu.f32", "geu.f32", "nan.f32"] {
        assert!(holds(name, f32::NAN, 1.0), "{name}");
    }
    let all: Vec<bool> = ["ltu.f32", "leu.f32", "gtu.f32", "geu.f32"].map(|n| holds(n, 1.0, 1.0)).into();
    assert_eq!(all, [false, true, false, true]);
    assert!(comparison("lt.s32").unwrap()(&[0xffff_ffff; LANES], &[0; LANES]) == u32::MAX);
}
