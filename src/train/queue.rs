//! How many steps are queued, when it is time to wait for them, and how long they waited for rows.

use std::time::{Duration, Instant};

/// Most steps that are queued.
const MOST: u64 = 4096;
/// Longest time between two collects: progress is shown, and a signal heeded, about as often.
const INTERVAL: Duration = Duration::from_millis(250);

/// Seconds over which the share of waiting is a mean: a window of rows is waited for once, and trained on for long.
const MEMORY: f64 = 60.0;

/// Steps queued since the last collect.
pub(super) struct Queue {
    waiting: u64,
    /// When the first of them was queued.
    since: Option<Instant>,
    /// As many as the device computes in an [`INTERVAL`]: it may be far behind the one who queues.
    limit: u64,
    /// Time since the last collect in which no step was computed because its rows were not there.
    waited: Duration,
    /// Sum and weight of the share waited, over about the last [`MEMORY`].
    recent: (f64, f64),
}

impl Default for Queue {
    fn default() -> Self {
        // The pace is not known yet.
        Self { waiting: 0, since: None, limit: 16, waited: Duration::ZERO, recent: (0.0, 0.0) }
    }
}

impl Queue {
    /// Steps that wait.
    pub(super) fn waiting(&self) -> u64 {
        self.waiting
    }

    /// A step is about to be queued.
    pub(super) fn begin(&mut self) {
        self.since.get_or_insert_with(Instant::now);
    }

    /// It was queued.
    pub(super) fn add(&mut self) {
        self.waiting += 1;
    }

    /// Whether to collect though nothing needs it.
    pub(super) fn is_due(&self) -> bool {
        self.waiting >= self.limit || self.since.is_some_and(|since| since.elapsed() >= INTERVAL)
    }

    /// Steps of others took so long; that is no time of these.
    pub(super) fn leave_out(&mut self, others: Duration) {
        self.since = self.since.map(|since| since + others);
    }

    /// Nothing was computed since `began`, for rows had to come first.
    pub(super) fn waited_since(&mut self, began: Instant) {
        self.waited += began.elapsed();
    }

    /// All were collected: how many, and in how many seconds.
    pub(super) fn finish(&mut self) -> (u64, f64) {
        let seconds = self.since.take().map_or(0.0, |since| since.elapsed().as_secs_f64());
        let steps = std::mem::take(&mut self.waiting);
        self.limit = limit(steps, seconds);
        (steps, seconds)
    }

    /// Share of the time of steps that was spent waiting for rows, lately. The last ones took `seconds`, of which the device
    /// stood still for `idle`.
    pub(super) fn share_waited(&mut self, seconds: f64, idle: f64) -> f64 {
        let waited = (std::mem::take(&mut self.waited).as_secs_f64() + idle).min(seconds);
        let (kept, share) = ((-seconds / MEMORY).exp(), waited / seconds.max(1e-9));
        let (sum, weight) = self.recent;
        self.recent = (sum * kept + share * (1.0 - kept), weight * kept + 1.0 - kept);
        self.recent.0 / self.recent.1.max(1e-9)
    }
}

/// Steps that take an [`INTERVAL`] at the pace of `steps` in `seconds`.
fn limit(steps: u64, seconds: f64) -> u64 {
    // Rounded towards zero, and 0 / 0 is 0: at least one.
    ((steps as f64 / seconds * INTERVAL.as_secs_f64()) as u64).clamp(1, MOST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_takes_about_an_interval() {
        assert_eq!(limit(16, 0.016), 250);
        assert_eq!(limit(1, 10.0), 1);
        assert_eq!(limit(100, 1e-6), MOST);
        assert_eq!(limit(5, 0.0), MOST);
        assert_eq!(limit(0, 0.0), 1);
    }

    #[test]
    fn the_share_of_waiting_is_that_of_the_last_minute_or_so() {
        let mut queue = Queue::default();
        assert_eq!(queue.share_waited(0.0, 0.0), 0.0);
        for _ in 0..100 {
            queue.share_waited(10.0, 4.0);
        }
        assert!((queue.share_waited(10.0, 4.0) - 0.4).abs() < 1e-9);
        // More than all of the time is not possible.
        assert!(queue.share_waited(1e6, 2e6) == 1.0);
        for _ in 0..40 {
            queue.share_waited(10.0, 0.0);
        }
        assert!(queue.share_waited(10.0, 0.0) < 0.01);
        queue.waited_since(Instant::now() - Duration::from_secs(5));
        let share = queue.share_waited(10.0, 0.0);
        assert!(share > 0.05 && share < 0.2, "{share}");
    }

    #[test]
    fn time_of_others_is_left_out() {
        let mut queue = Queue::default();
        queue.begin();
        queue.since = Some(Instant::now() - Duration::from_secs(10));
        queue.leave_out(Duration::from_secs(8));
        let (_, seconds) = queue.finish();
        assert!((2.0..5.0).contains(&seconds), "{seconds}");
    }

    #[test]
    fn a_full_queue_is_due_and_an_empty_one_is_not() {
        let mut queue = Queue::default();
        assert!(!queue.is_due());
        for _ in 0..queue.limit {
            queue.begin();
            queue.add();
        }
        assert!(queue.is_due());
        let (steps, seconds) = queue.finish();
        assert!(steps == 16 && seconds >= 0.0);
        assert!(queue.waiting() == 0 && !queue.is_due());
    }
}
