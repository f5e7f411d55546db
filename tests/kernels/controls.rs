//! Defects planted into the kernels, to see that the other tests of this folder would find them.

use crate::candidates::far_apart;
use crate::case::Case;
use crate::common::device::emulation_only;
use crate::common::emulator::Emulator;
use crate::engine::{clips, crowded, on};
use crate::kinds::{self, check_batch, evaluated, telling};
use crate::{index, topk};
use cuda_on_cpu::{mutate, sanitizer};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};
use topk_sae::backend::cuda::device::{Device, Element};
use topk_sae::backend::cuda::sources::SOURCES;
use topk_sae::spec::{Inference, Relaxation};

/// Whether this is not the place for planted defects: once is enough, and a card is left alone.
fn elsewhere() -> bool {
    sanitizer::inside() || emulation_only("planted defects")
}

/// Runs what finds most defects on the kernels of devices that `make` makes; true where some check fails. What tells most of
/// the file `changed` comes first: the rest is then seldom needed.
pub fn found(changed: &str, make: impl Fn() -> Emulator) -> bool {
    let failed = |check: &dyn Fn(Box<dyn Device>)| {
        (0..4).any(|seed| {
            let mut device = make();
            device.seed = seed;
            catch_unwind(AssertUnwindSafe(|| check(Box::new(device)))).is_err()
        })
    };
    let everything = |t: f64, wide: bool| {
        move |device: Box<dyn Device>| {
            // Latents that end inside a tile, and with it.
            let (d, m) = if wide { (1100, 300) } else { (40, 384) };
            let mut case = Case::new(70, d, m, 6);
            (case.t, case.l1, case.steps, case.tied) = (t, 0.1, 2, wide);
            (case.spec.objective.aux_k, case.dead_every, case.spec.optimizer.unit_norm_decoder) =
                (4, Some(3), true);
            (case.spec.optimizer.clip_norm, case.spec.optimizer.ema) = (Some(1e-2), Some(0.9));
            case.edit = |params, _| params.b_lat[200] = 6.0;
            case.agree_with(on(device), |_| ());
        }
    };
    let selection = || {
        failed(&|mut device| topk::check(device.as_mut(), Element::F32, 6200, 64))
            || failed(&|mut device| topk::check_selected_twice(device.as_mut()))
            || failed(&|device| {
                let mut cases = crate::case::signed().into_iter();
                let case = cases.find(|case| case.m == 1000 && case.l1 > 0.0);
                case.expect("a case with an L1 part").agree_with(on(device), |_| ());
            })
    };
    let by_latent = || {
        failed(&|mut device| {
            let latent = |row: usize, e: usize| if e == 0 { 3 } else { 4 + (row % 3) as u32 };
            index::check(device.as_mut(), 9000, 8, 2, &latent, &|_| 2);
            index::check(device.as_mut(), 300, 400, 4, &|row, e| (2 * e + row % 2) as u32, &|_| 4);
            index::check(device.as_mut(), 400, 5000, 20, &|row, e| (20 * (row / 80) + e) as u32, &|_| 20);
            index::check(device.as_mut(), 30, 9000, 2, &|row, e| (300 * row + e) as u32, &|_| 2);
            index::check(device.as_mut(), 40, 33, 33, &|row, e| ((row + e) % 33) as u32, &|row| {
                (row % 34) as u32
            });
        })
    };
    let steps = || {
        failed(&|device| {
            // More latents than blocks: a block takes one after the other.
            let mut case = Case::new(20, 70, 2100, 6);
            (case.steps, case.spec.optimizer.unit_norm_decoder) = (1, true);
            case.agree_with(on(device), |_| ());
        }) || failed(&|device| {
            // More than 32 latents a block.
            let mut case = Case::new(3, 9, 33_500, 4);
            case.steps = 1;
            case.agree_with(on(device), |_| ());
        }) || failed(&|device| crowded(false).agree_with(on(device), |_| ()))
            || failed(&|device| clips(device, 1.5))
            || failed(&everything(1.0, false))
            || failed(&everything(0.7, false))
            || failed(&everything(1.0, true))
    };
    let weighed = || {
        failed(&|device| candidates(device, Relaxation::Lapsum))
            || failed(&|device| candidates(device, Relaxation::AnnealK))
            || failed(&|device| {
                let mut case = far_apart(33);
                case.spec.warmup.relaxation = Relaxation::Lapsum;
                case.agree_with(on(device), |_| ());
            })
    };
    let evaluations = || {
        failed(&|device| crate::engine::many_entries(true).agree_with(on(device), |_| ()))
            || failed(&|device| crate::engine::evaluation_agrees(device, (1100, 40), Inference::Topk, true))
            || evaluated()
                .iter()
                .skip(3)
                .step_by(2)
                .any(|case| failed(&|device| kinds::evaluation_agrees(case, true, on(device))))
    };
    let kinds = || {
        failed(&|mut device| check_batch(device.as_mut(), Element::F32, 1100, 5))
            || telling().iter().any(|case| failed(&|device| case.clone().agree_with(on(device), |_| ())))
    };
    let ranks = || {
        crate::ranks::telling().into_iter().any(|case| {
            (0..2).any(|seed| {
                let devices = (0..2).map(|rank| {
                    let mut device = make();
                    device.seed = 2 * seed + rank;
                    Box::new(device) as Box<dyn Device>
                });
                let devices: Vec<Box<dyn Device>> = devices.collect();
                let agrees = AssertUnwindSafe(|| crate::ranks::agrees(&case, devices));
                catch_unwind(agrees).is_err()
            })
        })
    };
    let mut checks: [(&[&str], &dyn Fn() -> bool); 7] = [
        (&["topk_stream.cu"], &selection),
        (&["index.cu"], &by_latent),
        (&["gather_norm.cu", "soft_tiles.cu", "latent_update.cu", "reduce.cu", "common.cuh"], &steps),
        (&["gates.cu"], &weighed),
        (&["above.cu", "batch_topk.cu", "latent_update.cu", "reduce.cu", "decode.cu"], &kinds),
        (&["decode.cu", "entries.cuh"], &evaluations),
        (&["ranks.cu"], &ranks),
    ];
    checks.sort_by_key(|(files, _)| !files.contains(&changed));
    checks.iter().any(|(_, fails)| fails())
}

/// Fails where a step over candidates differs from the reference's: several warps a row, several segments of softmaxes.
fn candidates(device: Box<dyn Device>, relaxation: Relaxation) {
    let mut case = Case::new(9, 40, 500, 40);
    (case.t, case.l1, case.steps) = (0.4, 0.1, 2);
    (case.spec.warmup.relaxation, case.spec.warmup.pool) = (relaxation, 300);
    case.edit = |params, _| params.b_lat.iter_mut().step_by(2).for_each(|b| *b += 2.0);
    case.agree_with(on(device), |_| ());
}

/// True where the checks fail, or end the process, with these sources: in a child, since a wrong kernel may write
/// anywhere.
fn found_by_a_child(sources: &[(String, String)]) -> bool {
    assert!(!sanitizer::inside(), "skipped there: a planted defect is looked for once");
    // What the compiler refuses would end the child, and no check would have found it.
    drop(Emulator::with_sources(sources));
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), serde_json::to_vec(sources).unwrap()).unwrap();
    let told = tempfile::NamedTempFile::new().unwrap();
    let mut child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "controls::runs_planted_sources_if_asked"])
        .env(PLANTED, file.path())
        .stdout(told.reopen().unwrap())
        .stderr(told.reopen().unwrap())
        .spawn()
        .unwrap();
    let status = end_of(&mut child, Duration::from_secs(20));
    let text = std::fs::read_to_string(told.path()).unwrap_or_default();
    // One test ran, or the process was ended by a signal in the middle of it.
    assert!(status.code().is_none() || text.contains("running 1 test"), "{text}");
    !status.success()
}

/// Waits for the end of a process; ends it once it has neither computed nor had others compute for three times `window`: a wrong
/// kernel may have written over what the process then waits for.
fn end_of(child: &mut Child, window: Duration) -> ExitStatus {
    let (mut computed, mut idle) = (None, 0);
    loop {
        let start = Instant::now();
        while start.elapsed() < window {
            if let Some(status) = child.try_wait().unwrap() {
                return status;
            }
            std::thread::sleep(window / 200);
        }
        let now = cpu_time(child.id());
        idle = if now == computed && !has_children(child.id()) { idle + 1 } else { 0 };
        computed = now;
        if idle == 3 {
            child.kill().unwrap();
        }
    }
}

#[test]
fn a_process_that_waits_forever_is_ended_and_one_that_computes_is_not() {
    if elsewhere() {
        return;
    }
    let run = |script: &str| {
        let mut child = std::process::Command::new("sh").args(["-c", script]).spawn().unwrap();
        end_of(&mut child, Duration::from_millis(300))
    };
    assert_eq!(run("exec sleep 1000").code(), None);
    assert_eq!(run("i=0; while [ $i -lt 400000 ]; do i=$((i + 1)); done; sleep 2; exit 7").code(), Some(7));
}

/// Time that a process has computed, in ticks of the kernel.
fn cpu_time(process: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // Fields 14 and 15; the second is a name in brackets.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    Some(fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?)
}

/// Whether a process waits for others, such as a compiler.
fn has_children(process: u32) -> bool {
    let tasks = std::fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    let children = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("children"));
    tasks.filter_map(|task| children(task).ok()).any(|children| !children.trim().is_empty())
}

const PLANTED: &str = "SAE_PLANTED_SOURCES";

/// Nothing by itself: the child of other tests of this file.
#[test]
fn runs_planted_sources_if_asked() {
    if let Some(path) = std::env::var_os(PLANTED) {
        let sources: Vec<(String, String)> = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let differs = |(own, planted): &(&(&str, &str), &(String, String))| own.1 != planted.1;
        let changed = SOURCES.iter().zip(&sources).find(differs).map_or("", |(own, _)| own.0);
        assert!(!found(changed, || Emulator::with_sources(&sources)));
    }
}

fn planted(file: &str, from: &str, to: &str) -> bool {
    found_by_a_child(&mutate(SOURCES, file, from, to))
}

/// All sources, with the text of `file` changed.
fn changed(file: &str, change: impl Fn(&str) -> String) -> Vec<(String, String)> {
    let one = |&(name, text): &(&str, &str)| {
        (name.to_owned(), if name == file { change(text) } else { text.to_owned() })
    };
    SOURCES.iter().map(one).collect()
}

#[test]
fn a_missing_barrier_is_found() {
    if elsewhere() {
        return;
    }
    for (file, barrier) in [
        (
            "topk_stream.cu",
            "        // All keys must be counted before the bins are summed.\n        __syncthreads();",
        ),
        (
            "decode.cu",
            "        // All of dy' must be in shared memory before it is multiplied with rows of W_dec.\n        __syncthreads();",
        ),
        (
            "decode.cu",
            "        // The sums of all warps must be there before they are added.\n        __syncthreads();",
        ),
        ("gates.cu", "    // All keys must be there before they are compared.\n    __syncthreads();"),
        (
            "gates.cu",
            "    // The maxima of all warps must be there before they are compared.\n    __syncthreads();",
        ),
        ("batch_topk.cu", "    // All bins must be empty before any is counted.\n    __syncthreads();"),
        (
            "ranks.cu",
            "    // All cuts must be there before any thread sums over a segment.\n    __syncthreads();",
        ),
        (
            "decode.cu",
            "        // All entries of the run must be there before any thread sums over them.\n        __syncthreads();",
        ),
        (
            "latent_update.cu",
            "        // Columns of the rows belong to other threads from here on.\n        __syncthreads();",
        ),
    ] {
        assert!(planted(file, barrier, ""), "{file}: {barrier}");
    }
}

#[test]
fn a_wrong_tie_rule_is_found() {
    if elsewhere() {
        return;
    }
    // The highest index wins: in the key and in its reading.
    let wrong =
        |text: &str| text.replace("(u32)~of", "(u32)of").replace("(u32)s.keys[e] : 0", "~(u32)s.keys[e] : 0");
    let sources = changed("topk_stream.cu", wrong);
    assert!(SOURCES.iter().zip(&sources).any(|(a, b)| a.1 != b.1));
    assert!(found_by_a_child(&sources));
}

#[test]
fn wrong_arithmetic_is_found() {
    if elsewhere() {
        return;
    }
    let mut missed = vec![];
    for (file, from, to) in [
        ("soft_tiles.cu", "+ row.c +", "+"),
        // What competes with signs is the magnitude; the L1 weight pulls towards zero from both sides.
        ("topk_stream.cu", "SIGNED ? fabsf(z) : z", "z"),
        ("topk_stream.cu", "SIGNED ? widen(row[j]) + b_lat[j] :", ""),
        // A bound that too few scores reach; zeros; what a slot holds; the last key of an odd number.
        ("topk_stream.cu", "want -= s->above;\n        // All threads", "want = 1;\n        // All threads"),
        ("topk_stream.cu", "shift == 23 || bits >> 23 == prefix >> 23", "true"),
        ("topk_stream.cu", "max(prefix, 1u)", "prefix"),
        ("topk_stream.cu", "if (s.maxima[i] >= threshold)", "if (s.maxima[i] > threshold)"),
        ("topk_stream.cu", "(idle == 0 || idle[of] >= dead_after)", "true"),
        ("topk_stream.cu", "if (threadIdx.x == 0 && held % 2 > 0) s->keys[held] = 0;", ""),
        ("topk_stream.cu", "four.v[l] > own", "four.v[l] >= own"),
        ("decode.cu", "(value[first + q] < 0.0f ? -add : add)", "add"),
        (
            "decode.cu",
            "code += (double)fabsf(share * row.value[e]);",
            "code += (double)(share * row.value[e]);",
        ),
        // What the warps add, beyond the rows they hold and beyond the last column.
        (
            "decode.cu",
            "for (u32 other = 0; other < warps; other++)",
            "for (u32 other = 1; other < warps; other++)",
        ),
        ("decode.cu", "e = warp + HELD * warps; e < count", "e = warp + HELD * warps + warps; e < count"),
        ("decode.cu", "e = held + warp; e < count", "e = held + warp + warps; e < count"),
        ("decode.cu", "if (!dots || start + lane * P >= pitch) continue;", "if (!dots) continue;"),
        ("decode.cu", "= sum + (value[e] < 0.0f ? -add : add)", "= sum + add"),
        ("decode.cu", "= rest + (value[e] < 0.0f ? -add : add)", "= rest"),
        // Where segments begin; what of the prefixes before goes on.
        ("entries.cuh", "if (index[middle] < ends[s - 1])", "if (index[middle] <= ends[s - 1])"),
        ("decode.cu", "acc[l] = s > 0 ? sum[i + l] : 0.0f;", "acc[l] = 0.0f;"),
        ("latent_update.cu", "recon += j >= ends[s] ?", "recon += j > ends[s] ?"),
        // A tie across rows and within one; the search for places.
        ("batch_topk.cu", "same && (u32)__popc(twins & before) < ties", "same && ties > 0"),
        ("batch_topk.cu", "before < left ? min(same, left - before) : 0", "min(same, left)"),
        ("batch_topk.cu", "want - (upper ? above : above + high)", "want - above"),
        ("batch_topk.cu", "if (all < want) {", "if (false) {"),
        // The gradients of thresholds and of lengths; thresholds below 0.
        ("above.cu", "-(threshold * dh + slope)", "-(threshold * dh - slope)"),
        ("above.cu", "if (lengths != 0) dh += control->per_entry * lengths[j];", ""),
        (
            "latent_update.cu",
            "control->per_entry * dense.code[at] / lengths[j]",
            "control->per_entry * dense.code[at]",
        ),
        ("latent_update.cu", "if (w < least) w = least;", ""),
        ("reduce.cu", "weight * 4.0 / (k * n)", "weight * 2.0 / (k * n)"),
        ("reduce.cu", "*carried = control->carried;", "{}"),
        (
            "reduce.cu",
            "step->furthest * distance(l0, step->k, 1.0f)",
            "step->furthest * distance(l0, step->k, 0.5f)",
        ),
        // The sign of the backward pass; which latents fire; the gradient of the standardisation.
        ("gates.cu", "g[i] = f[i] * (v[i] - middle)", "g[i] = f[i] * (middle - v[i])"),
        (
            "gates.cu",
            "if (larger[i] >= k) return;\n        top |= 1u << i;",
            "if (larger[i] < k) top |= 1u << i;",
        ),
        ("gates.cu", "(g[i] - mean - u[i] * along)", "(g[i] - mean)"),
        // What the runs of a long list add.
        ("index.cu", "cut.first[j] = first;", "cut.first[j] = 0;"),
        ("index.cu", "first + runs <= cut.most", "first < cut.most"),
        ("index.cu", "cut.first[m] = first;", "{}"),
        ("index.cu", "if (cut.first[j] == r) order", "if (cut.first[j] == r && r > 0) order"),
        ("latent_update.cu", "(r - list.cut.first[j]) * list.cut.length", "0"),
        ("latent_update.cu", "min(begin + list.cut.length, list.offsets[j + 1])", "begin + list.cut.length"),
        ("latent_update.cu", "*bias += list.run_bias[r];", ""),
        ("latent_update.cu", "if (!TIED) add_run(dec + l, run_row(list.run_dec, r, pitch) + i + l);", ""),
        ("latent_update.cu", "r < first + runs; r++", "r + 1 < first + runs; r++"),
        ("latent_update.cu", "dec[l] += h * widen(out.v[l]);", "dec[l] += g * widen(out.v[l]);"),
        (
            "topk_stream.cu",
            "for (u32 w = 0; w < TOPK_THREADS / WARP; w++) least",
            "for (u32 w = 1; w < TOPK_THREADS / WARP; w++) least",
        ),
        // Which latents a block takes, with lists and without.
        ("latent_update.cu", "cost(latents) * block / blocks", "cost(latents) * block / (blocks + 1)"),
        ("index.cu", "runs > 0 ? runs : own.v[l]", "own.v[l]"),
        ("index.cu", "cost_before += cost_of_tile;", ""),
        ("index.cu", "if (j + l + 1 == m) cost[m] = cost_here;", ""),
        ("latent_update.cu", "(u64)block * latents / blocks", "(u64)block * (latents - 1) / blocks"),
        // Vectors, of the last latents of a share, and of all before.
        ("latent_update.cu", "values < WARP && at + 1 < share[1]", "values < WARP"),
        ("latent_update.cu", "values < WARP && at + 1 < share[1]", "at + 1 < share[1]"),
        ("latent_update.cu", "of = at + 1 - values + threadIdx.x;", "of = at - threadIdx.x;"),
        // What ranks have of the latents, and what they make of each other's.
        ("ranks.cu", "(u32)((u64)r * units / ranks) * GROUP", "(u32)((u64)r * units / ranks) * GROUP + r"),
        ("ranks.cu", "aux ? k : min(k, step->active)", "k"),
        ("ranks.cu", "total > want ? want - reach(all, n, least + 1) : total", "want"),
        ("ranks.cu", "(same && (u32)__popc(twins & before) < ties)", "same"),
        ("ranks.cu", "own_count[n] = at - own_begin;", "own_count[n] = at - begin;"),
        (
            "ranks.cu",
            "if (r == rank && lane == 0) own_first[n] = at;",
            "if (r == 0 && lane == 0) own_first[n] = at;",
        ),
        ("ranks.cu", "(u64)least << 32 | (u32)~last", "(u64)least << 32 | ~0u"),
        ("ranks.cu", "if (fired != 0) fired[j] = 1;", ""),
        ("ranks.cu", "__float_as_uint(z) & 0x7fffffffu", "__float_as_uint(z)"),
        (
            "ranks.cu",
            "exp2f((row.max - max) * per_temperature(step->inv_tau)) / row.inv_total",
            "1.0f / row.inv_total",
        ),
        ("ranks.cu", "sum += row.sum;", "sum = row.sum;"),
        ("ranks.cu", "u32 from = begin + cuts[s];", "u32 from = begin + cuts[0];"),
        ("ranks.cu", "if (fired_rows != 0) atomicAdd(", "if (fired_rows != 0 && e > 0) atomicAdd("),
        ("ranks.cu", "facts[n_rows + n] = held;", "facts[n_rows + n] = 1;"),
        ("ranks.cu", "y = share * sum + b_pre[c];", "y = sum + b_pre[c];"),
        ("ranks.cu", "later += planes[s * plane + at];", "later = planes[s * plane + at];"),
        ("ranks.cu", "aux[at] * sigma + off", "aux[at] * sigma"),
        ("ranks.cu", "(double)share * facts[n] + (double)soft_scale", "facts[n]"),
        ("ranks.cu", "((float)along + step->sparsity)", "(float)along"),
        ("ranks.cu", "index[e] >= ends[s] ? plane", "index[e] > ends[s] ? plane"),
        ("ranks.cu", "dot + (value[e] < 0.0f ? -add : add)", "dot + add"),
        ("gates.cu", "~(u32)own[i] - step->group * GROUP", "~(u32)own[i]"),
        ("topk_stream.cu", "step->group + j / GROUP + g", "j / GROUP + g"),
        ("soft_tiles.cu", "step->group + group", "group"),
        ("soft_tiles.cu", "~(q.j[w] + before)", "~q.j[w]"),
        ("batch_topk.cu", "if (r == rank) lower = of_row;", ""),
        ("common.cuh", "c2 = high0 ^ c3 ^ k1;", "c2 = high0 ^ c3;"),
        ("reduce.cu", "rows > ~0u - n_rows ? ~0u : rows + n_rows", "rows + 1"),
    ] {
        if !planted(file, from, to) {
            missed.push((file, from));
        }
    }
    assert!(missed.is_empty(), "{missed:?}");
}

/// Nothing by itself: the child of the next test, in which the sanitizers end the process.
#[test]
fn writes_one_place_too_far_if_asked() {
    if std::env::var_os("SAE_PLANT_OUT_OF_BOUNDS").is_some() {
        assert!(sanitizer::inside());
        let far = "i <= pitch; i += WARP) {";
        let sources = mutate(SOURCES, "gather_norm.cu", "i < pitch; i += WARP) {", far);
        found("gather_norm.cu", || Emulator::with_sources(&sources));
    }
}

#[test]
fn a_write_out_of_bounds_is_found() {
    if elsewhere() {
        return;
    }
    let name = "controls::writes_one_place_too_far_if_asked";
    let child = sanitizer::run(&["--exact", name, "--nocapture"], &[("SAE_PLANT_OUT_OF_BOUNDS", "1")]);
    let text = String::from_utf8_lossy(&child.stderr).into_owned() + &String::from_utf8_lossy(&child.stdout);
    assert!(!child.status.success(), "{text}");
    assert!(text.contains("gather_norm.cu") && text.contains("heap-buffer-overflow"), "{text}");
}

#[test]
fn the_kernels_as_they_are_pass_the_same_checks() {
    if elsewhere() {
        return;
    }
    assert!(!found_by_a_child(&changed("", str::to_owned)));
}

/// Fails where `is_found` is false of a file and the sources without one of its barriers, taken out alone. Some only change how tight
/// a bound is, which races between threads tell and results do not: it is asked of what looks for races.
pub fn every_barrier(is_found: impl Fn(&str, Vec<(String, String)>) -> bool) {
    const BARRIER: &str = "__syncthreads();";
    let mut missed = vec![];
    for &(name, text) in SOURCES {
        for (at, _) in text.match_indices(BARRIER) {
            let without = |text: &str| {
                let mut text = text.to_owned();
                text.replace_range(at..at + BARRIER.len(), "");
                text
            };
            let verdict = is_found(name, changed(name, without));
            let line = text[..at].lines().count();
            println!("{name}:{line}: {}", if verdict { "found" } else { "MISSED" });
            if !verdict {
                missed.push(format!("{name}:{line}"));
            }
        }
    }
    assert!(missed.is_empty(), "{missed:?}");
}
