//! What an instruction does to the registers and the memory of a warp.

use super::super::memory::Kind;
use super::super::{LANES, Lanes, Op, Place, Shuffle, Special, Vote, lanes};
use super::Block;
use rand::seq::SliceRandom;

impl Block<'_, '_> {
    pub fn execute(&mut self, w: usize, op: &Op, mask: u32) -> Result<(), String> {
        let kernel = self.kernel;
        let warp = &mut self.warps[w];
        let mut out = [0; LANES];
        match op {
            Op::Compute { make, to, from } => {
                make(&from.map(|f| warp.get(kernel, f)), &mut out);
                warp.set(*to, mask, &out);
            }
            Op::Compare { make, to, a, b } => {
                let bits = make(warp.get(kernel, *a), warp.get(kernel, *b));
                warp.set_predicate(*to, mask, bits);
            }
            Op::Logic { make, to, a, b } => {
                let bits = make(warp.predicates[*a as usize], warp.predicates[*b as usize]);
                warp.set_predicate(*to, mask, bits);
            }
            Op::Select { to, a, b, by } => {
                let (a, b, by) = (warp.get(kernel, *a), warp.get(kernel, *b), warp.predicates[*by as usize]);
                for lane in 0..LANES {
                    out[lane] = if by >> lane & 1 == 1 { a[lane] } else { b[lane] };
                }
                warp.set(*to, mask, &out);
            }
            Op::Special { to, what } => {
                let launch = self.grid.launch;
                for (lane, out) in out.iter_mut().enumerate() {
                    *out = match what {
                        Special::Thread => (warp.number * LANES + lane) as u64,
                        Special::Threads => launch.block.into(),
                        Special::BlockX => self.place.0.into(),
                        Special::BlockY => self.place.1.into(),
                        Special::BlocksX => launch.grid.0.into(),
                        Special::BlocksY => launch.grid.1.into(),
                        Special::Zero => 0,
                        Special::One => 1,
                    };
                }
                warp.set(*to, mask, &out);
            }
            Op::Parameter { to, index } => {
                let value = self.grid.arguments.get(*index).ok_or("there is no such parameter")?;
                warp.set(*to, mask, &[*value; LANES]);
            }
            Op::Unpack { to, from, bits } => {
                let from = *warp.get(kernel, *from);
                for (part, to) in to.iter().enumerate() {
                    let part = from.map(|v| v >> (part as u32 * bits) & ((1 << bits) - 1));
                    warp.set(*to, mask, &part);
                }
            }
            Op::Pack { to, from, bits } => {
                for (part, from) in from.iter().enumerate() {
                    let from = warp.get(kernel, *from);
                    (0..LANES).for_each(|lane| out[lane] |= from[lane] << (part as u32 * bits));
                }
                warp.set(*to, mask, &out);
            }
            Op::Shuffle { mode, to, valid, from: [value, b, c], .. } => {
                let [value, b, c] = [value, b, c].map(|f| warp.get(kernel, *f));
                let mut reached = 0;
                for lane in lanes(mask) {
                    let (from, valid) = source_lane(*mode, lane as i64, b[lane] as i64 & 31, c[lane]);
                    if mask >> from & 1 == 0 {
                        return Err(format!("lane {lane} takes a value of lane {from}, which is not there"));
                    }
                    out[lane] = value[from];
                    reached |= u32::from(valid) << lane;
                }
                warp.set(*to, mask, &out);
                if let Some(valid) = valid {
                    warp.set_predicate(*valid, mask, reached);
                }
            }
            Op::Vote { mode, to, from, .. } => {
                let votes = warp.predicates[*from as usize] & mask;
                match mode {
                    Vote::Ballot => warp.set(*to, mask, &[votes.into(); LANES]),
                    Vote::Any => warp.set_predicate(*to, mask, if votes != 0 { mask } else { 0 }),
                    Vote::All => warp.set_predicate(*to, mask, if votes == mask { mask } else { 0 }),
                }
            }
            Op::Load { .. } | Op::Store { .. } | Op::Atomic { .. } => return self.transfer(w, op, mask),
            Op::Barrier { .. } | Op::Branch { .. } | Op::Return => {
                return Err("not to be executed here".into());
            }
        }
        Ok(())
    }

    /// Checks and notes one lane's access of `bytes` bytes, into which it stores `from`.
    fn access(
        &mut self,
        w: usize,
        (place, bytes, kind): (Place, usize, Kind),
        lane: usize,
        at: u64,
        from: &[Lanes],
    ) -> Result<(), String> {
        match place {
            Place::Global => self.global.inside(at, bytes)?,
            Place::Shared => self.shared.inside(at, bytes)?,
        }
        let each = bytes / from.len().max(1);
        let is_there = |(i, v): (usize, &Lanes)| self.load(place, at + (i * each) as u64, each) == v[lane];
        let same = kind == Kind::Store && from.iter().enumerate().all(is_there);
        let who = self.warps[w].who(lane);
        match place {
            Place::Global => self.global.touch(at, bytes, kind, who, same),
            Place::Shared => self.shared.touch(at, bytes, kind, who, same),
        }
    }

    fn count(&mut self, (place, bytes, kind): (Place, usize, Kind), at: &Lanes, mask: u32) {
        match place {
            Place::Global => self.global.count(at, mask, bytes, kind),
            Place::Shared => self.shared.count(at, mask, bytes),
        }
    }

    fn load(&self, place: Place, address: u64, bytes: usize) -> u64 {
        match place {
            // SAFETY: `transfer` has had the address checked before.
            Place::Global => unsafe { self.global.load(address, bytes) },
            Place::Shared => self.shared.load(address, bytes),
        }
    }

    fn store(&mut self, place: Place, address: u64, bytes: usize, value: u64) {
        match place {
            // SAFETY: `transfer` has had the address checked before.
            Place::Global => unsafe { self.global.store(address, bytes, value) },
            Place::Shared => self.shared.store(address, bytes, value),
        }
    }

    fn transfer(&mut self, w: usize, op: &Op, mask: u32) -> Result<(), String> {
        let kernel = self.kernel;
        let mut out = [0; LANES];
        match op {
            Op::Load { place, bytes, to, at } => {
                let at = self.warps[w].addresses(kernel, *at);
                let what = (*place, bytes * to.len(), Kind::Load);
                for lane in lanes(mask) {
                    self.access(w, what, lane, at[lane], &[])?;
                }
                for (part, to) in to.iter().enumerate() {
                    for lane in lanes(mask) {
                        out[lane] = self.load(*place, at[lane] + (part * bytes) as u64, *bytes);
                    }
                    self.warps[w].set(*to, mask, &out);
                }
                self.count(what, &at, mask);
            }
            Op::Store { place, bytes, from, at } => {
                let at = self.warps[w].addresses(kernel, *at);
                let from: Vec<Lanes> = from.iter().map(|f| *self.warps[w].get(kernel, *f)).collect();
                let what = (*place, bytes * from.len(), Kind::Store);
                for lane in lanes(mask) {
                    self.access(w, what, lane, at[lane], &from)?;
                    for (part, values) in from.iter().enumerate() {
                        self.store(*place, at[lane] + (part * bytes) as u64, *bytes, values[lane]);
                    }
                }
                self.count(what, &at, mask);
            }
            Op::Atomic { place, make, to, at, with } => {
                let at = self.warps[w].addresses(kernel, *at);
                let with = *self.warps[w].get(kernel, *with);
                let what = (*place, 4, Kind::Atomic);
                // No order of lanes is promised.
                let mut order: Vec<usize> = lanes(mask).collect();
                order.shuffle(self.random);
                for lane in order {
                    self.access(w, what, lane, at[lane], &[])?;
                    out[lane] = self.load(*place, at[lane], 4);
                    self.store(*place, at[lane], 4, make(out[lane] as u32, with[lane] as u32).into());
                }
                self.warps[w].set(*to, mask, &out);
                self.count(what, &at, mask);
            }
            _ => {}
        }
        Ok(())
    }
}

/// The lane that a shuffle reads, and whether that is the one asked for. `c` holds the clamp, and the mask of segments from bit 8.
fn source_lane(mode: Shuffle, lane: i64, b: i64, c: u64) -> (usize, bool) {
    let (clamp, segment) = (c as i64 & 31, c as i64 >> 8 & 31);
    let most = (lane & segment) | (clamp & !segment);
    let (from, valid) = match mode {
        Shuffle::Up => (lane - b, lane - b >= most),
        Shuffle::Down => (lane + b, lane + b <= most),
        Shuffle::Butterfly => (lane ^ b, lane ^ b <= most),
        Shuffle::Index => {
            let from = (lane & segment) | (b & !segment);
            (from, from <= most)
        }
    };
    (if valid { from } else { lane } as usize & 31, valid)
}
