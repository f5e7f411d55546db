//! What follows from the activation: relaxation, penalty, prefixes. Combinations that make no sense are refused by name.

use super::options::DEFAULTS;
use super::{Options, PrefixList, usage};
use crate::error::Result;
use crate::spec::{Activation, Choice, Inference, MOST_PREFIXES, Penalty, Prefixes, Relaxation, row_length};

/// Width of the kernel of thresholds, as a share of the length of a row.
const BANDWIDTH: f64 = 0.01;

/// The settings of a run that keep its codes sparse.
pub(super) struct Settled {
    pub inference: Inference,
    pub prefixes: Prefixes,
    pub penalty: Penalty,
    /// Of the penalty; a factor on it where it seeks k.
    pub weight: f64,
    pub seeks_k: bool,
    pub l0_warmup: u64,
}

impl Settled {
    /// Of options `o`, of which `given` are not from a preset.
    pub fn new(
        o: &Options,
        given: &Options,
        activation: Activation,
        n_latents: usize,
        steps: u64,
    ) -> Result<Self> {
        let penalty = penalty(given, activation)?;
        let inference = inference(o, activation)?;
        let prefixes = prefixes(o, n_latents)?;
        if !prefixes.is_empty() && relaxation(o, given, activation)? == Relaxation::Softmax {
            return usage(
                "--prefixes do not go with --relaxation softmax, in which every latent is active: give --relaxation lapsum, \
                 anneal-k or none"
                    .into(),
            );
        }
        // The weight that a preset has is for its own activation.
        let relu = activation == Activation::Relu;
        let seeks_k = relu && given.l1.is_none();
        let weight = match (penalty.counts(), seeks_k) {
            (true, _) => o.l0_weight.unwrap_or(DEFAULTS.l0_weight),
            (_, true) => 1.0,
            _ => if relu { given.l1 } else { o.l1 }.unwrap_or(DEFAULTS.l1),
        };
        let l0_warmup = if penalty.counts() { o.l0_warmup.unwrap_or(steps / 10) } else { 0 };
        Ok(Self { inference, prefixes, penalty, weight, seeks_k, l0_warmup })
    }
}

/// Width of the kernel of thresholds where none is given.
pub(super) fn bandwidth(d_in: usize, normalize: bool, loss_scale: f64) -> f64 {
    BANDWIDTH * row_length(d_in, normalize, loss_scale)
}

/// What stands in for the top k at the start: that of the preset where the activation has relaxed forms.
pub(super) fn relaxation(o: &Options, given: &Options, activation: Activation) -> Result<Relaxation> {
    let fits = |relaxation| match activation {
        Activation::Topk => true,
        Activation::BatchTopk => matches!(relaxation, Relaxation::None | Relaxation::AnnealK),
        Activation::AbsTopk | Activation::JumpRelu | Activation::Relu => relaxation == Relaxation::None,
    };
    if let Some(other) = given.relaxation.filter(|&relaxation| !fits(relaxation)) {
        let fitting = if activation == Activation::BatchTopk {
            "give --relaxation anneal-k, or leave it out"
        } else {
            "leave --relaxation out"
        };
        return usage(format!(
            "--activation {activation} has no relaxed form such as --relaxation {other}: {fitting}"
        ));
    }
    if activation != Activation::Topk {
        return Ok(given.relaxation.unwrap_or(Relaxation::None));
    }
    // A preset without a warm-up gets the softmax only where the length of one is given.
    let warms_up = o.anneal_steps.is_some_and(|steps| steps > 0);
    Ok(o.relaxation.unwrap_or(if warms_up { Relaxation::Softmax } else { Relaxation::None }))
}

fn inference(o: &Options, activation: Activation) -> Result<Inference> {
    let own = activation.inference();
    match o.inference {
        None => Ok(own),
        Some(inference) if inference == own => Ok(own),
        Some(Inference::Relu) if activation == Activation::Topk => Ok(Inference::Relu),
        Some(Inference::Relu) if activation == Activation::AbsTopk => usage(
            "--inference relu drops the negative codes of --activation abs-topk: leave one of them out"
                .into(),
        ),
        Some(other) => usage(format!(
            "--inference {other} makes no codes of --activation {activation}, whose own are {own}: leave --inference out"
        )),
    }
}

fn prefixes(o: &Options, n_latents: usize) -> Result<Prefixes> {
    let given = match o.prefixes {
        None => return Ok(Prefixes::default()),
        Some(PrefixList::Auto) => return Ok(Prefixes::of(n_latents)),
        Some(PrefixList::Given(prefixes)) => prefixes,
    };
    let last = given.ends().last().map_or(0, |&last| last as usize);
    if last > n_latents {
        return usage(format!(
            "--prefixes {given} goes beyond the {n_latents} latents: lower it, or raise --latents"
        ));
    }
    let mut ends = given.ends().to_vec();
    if last < n_latents {
        ends.push(n_latents as u32);
    }
    if ends.len() < 2 || ends.len() > MOST_PREFIXES {
        return usage(format!(
            "--prefixes {given} with all {n_latents} latents are {} prefixes: give between 2 and {MOST_PREFIXES}",
            ends.len()
        ));
    }
    Prefixes::new(&ends).or_else(|e| usage(format!("--prefixes {given}: {e}")))
}

/// The penalty, and that no option belongs to another one.
fn penalty(given: &Options, activation: Activation) -> Result<Penalty> {
    let own = activation.penalty();
    let penalty = given.penalty.unwrap_or(own);
    if penalty.counts() != own.counts() || (!own.counts() && penalty != own) {
        let fitting = if own.counts() { "l0-target, l0 or l0-rows" } else { own.name() };
        return usage(format!(
            "--penalty {penalty} does not go with --activation {activation}: give {fitting}, or leave it out"
        ));
    }
    if penalty.counts() && given.l1.is_some_and(|l1| l1 > 0.0) {
        return usage("--l1 is not the weight of --activation jumprelu: give --l0-weight".into());
    }
    let of_thresholds = [
        ("--l0-weight", given.l0_weight.is_some()),
        ("--l0-warmup", given.l0_warmup.is_some()),
        ("--bandwidth", given.bandwidth.is_some()),
    ];
    match of_thresholds.into_iter().find(|(_, is_given)| *is_given && !penalty.counts()) {
        Some((flag, _)) => usage(format!("{flag} belongs to --activation jumprelu: drop it, or add that")),
        None => Ok(penalty),
    }
}
