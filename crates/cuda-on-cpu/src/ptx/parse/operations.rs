//! Instructions by their names and operands.

use super::super::{Op, Place, Shuffle, Special, Vote, ops};
use super::{Reader, bits};

impl Reader<'_> {
    pub fn operation(&mut self, name: &str, of: &[&str]) -> Result<Op, String> {
        let parts: Vec<&str> = name.split('.').collect();
        let kind = format!(".{}", parts.last().copied().unwrap_or_default());
        let wide = bits(&kind).unwrap_or(32);
        let arg = |n: usize| of.get(n).copied().ok_or("an operand is missing".to_owned());
        let place = match parts.get(1) {
            Some(&"shared") => Place::Shared,
            _ => Place::Global,
        };
        if let ("mov", Some(what)) = (parts[0], of.get(1).and_then(|name| special(name))) {
            return Ok(Op::Special { to: self.register(arg(0)?)?, what });
        }
        Ok(match parts[0] {
            "ret" => Op::Return,
            "bra" => {
                self.branches.push((self.kernel.code.len(), arg(0)?.to_owned()));
                Op::Branch { to: 0 }
            }
            "bar" | "shfl" | "vote" => self.exchange(&parts, of)?,
            "atom" => {
                let make: fn(u32, u32) -> u32 = match &parts[2..] {
                    ["add", "u32"] => u32::wrapping_add,
                    ["or", "b32"] => |a, b| a | b,
                    _ => return Err("this atomic operation is not known".into()),
                };
                let (to, at) = (self.register(arg(0)?)?, self.address(arg(1)?)?);
                Op::Atomic { place, make, to, at, with: self.source(arg(2)?, 32)? }
            }
            "ld" if parts[1] == "param" => {
                let index = arg(1)?.trim_matches(['[', ']']).rsplit('_').next().and_then(|n| n.parse().ok());
                Op::Parameter { to: self.register(arg(0)?)?, index: index.ok_or("no parameter")? }
            }
            // `nc`: through the read-only cache.
            "ld" if matches!(parts[1], "global" | "shared") => Op::Load {
                place,
                bytes: wide as usize / 8,
                to: self.many(arg(0)?)?,
                at: self.address(arg(1)?)?,
            },
            "st" if matches!(parts[1], "global" | "shared") => {
                let at = self.address(arg(0)?)?;
                Op::Store { place, bytes: wide as usize / 8, from: self.sources(arg(1)?, wide)?, at }
            }
            "setp" => Op::Compare {
                make: ops::comparison(&name["setp.".len()..]).ok_or("this comparison is not known")?,
                to: self.predicate(arg(0)?)?,
                a: self.source(arg(1)?, wide)?,
                b: self.source(arg(2)?, wide)?,
            },
            "selp" => Op::Select {
                to: self.register(arg(0)?)?,
                a: self.source(arg(1)?, wide)?,
                b: self.source(arg(2)?, wide)?,
                by: self.predicate(arg(3)?)?,
            },
            "and" | "or" | "xor" | "not" | "mov" if kind == ".pred" => self.logic(parts[0], of)?,
            "mov" if arg(0)?.starts_with('{') => {
                let to = self.many(arg(0)?)?;
                let bits = wide / to.len() as u32;
                Op::Unpack { to, from: self.source(arg(1)?, wide)?, bits }
            }
            "mov" if arg(1)?.starts_with('{') => {
                let bits = wide / arg(1)?.split(',').count() as u32;
                Op::Pack { to: self.register(arg(0)?)?, from: self.sources(arg(1)?, bits)?, bits }
            }
            _ => {
                let make = ops::named(name).ok_or("this instruction is not known")?;
                let to = self.register(arg(0)?)?;
                let mut from = [self.constant(0); 4];
                for (slot, text) in from.iter_mut().zip(&of[1..]) {
                    *slot = self.source(text, wide)?;
                }
                Op::Compute { make, to, from }
            }
        })
    }

    /// What lanes or threads do together.
    fn exchange(&mut self, parts: &[&str], of: &[&str]) -> Result<Op, String> {
        let arg = |n: usize| of.get(n).copied().ok_or("an operand is missing".to_owned());
        Ok(match parts[0] {
            "bar" => match (&parts[1..], of) {
                (["sync"], ["0"]) => Op::Barrier { any: None },
                (["red", "or", "pred"], [to, "0", from]) => {
                    Op::Barrier { any: Some((self.predicate(to)?, self.predicate(from)?)) }
                }
                _ => return Err("this barrier is not known".into()),
            },
            "shfl" => {
                let mode = match parts[2] {
                    "up" => Shuffle::Up,
                    "down" => Shuffle::Down,
                    "bfly" => Shuffle::Butterfly,
                    _ => Shuffle::Index,
                };
                let (to, valid) = arg(0)?.split_once('|').map_or((arg(0)?, None), |(to, v)| (to, Some(v)));
                Op::Shuffle {
                    mode,
                    to: self.register(to)?,
                    valid: valid.map(|v| self.predicate(v)).transpose()?,
                    from: [self.source(arg(1)?, 32)?, self.source(arg(2)?, 32)?, self.source(arg(3)?, 32)?],
                    members: self.source(arg(4)?, 32)?,
                }
            }
            _ => {
                let (mode, to) = match parts[2] {
                    "any" => (Vote::Any, self.predicate(arg(0)?)?),
                    "all" => (Vote::All, self.predicate(arg(0)?)?),
                    "ballot" => (Vote::Ballot, self.register(arg(0)?)?),
                    _ => return Err("this vote is not known".into()),
                };
                Op::Vote { mode, to, from: self.predicate(arg(1)?)?, members: self.source(arg(2)?, 32)? }
            }
        })
    }

    fn logic(&self, name: &str, of: &[&str]) -> Result<Op, String> {
        let to = self.predicate(of[0])?;
        let number = |text: &str| text.trim_start_matches('-').parse::<u32>().ok();
        if let (true, Some(value)) = (name == "mov", of.get(1).and_then(|v| number(v))) {
            let make: fn(u32, u32) -> u32 = if value == 0 { |_, _| 0 } else { |_, _| u32::MAX };
            return Ok(Op::Logic { make, to, a: to, b: to });
        }
        let a = self.predicate(of[1])?;
        let b = of.get(2).map_or(Ok(a), |b| self.predicate(b))?;
        let make: fn(u32, u32) -> u32 = match name {
            "and" => |a, b| a & b,
            "or" => |a, b| a | b,
            "xor" => |a, b| a ^ b,
            "not" => |a, _| !a,
            _ => |a, _| a,
        };
        Ok(Op::Logic { make, to, a, b })
    }
}

fn special(name: &str) -> Option<Special> {
    Some(match name {
        "%tid.x" => Special::Thread,
        "%ntid.x" => Special::Threads,
        "%ctaid.x" => Special::BlockX,
        "%ctaid.y" => Special::BlockY,
        "%nctaid.x" => Special::BlocksX,
        "%nctaid.y" => Special::BlocksY,
        "%tid.y" | "%tid.z" | "%ctaid.z" => Special::Zero,
        "%ntid.y" | "%ntid.z" | "%nctaid.z" => Special::One,
        _ => return None,
    })
}
