//! The time after the rough one: everything works again, and every object has to come to the end that it is owed.

use super::invariants::Verdict;
use super::node::Mishap;
use super::user;
use super::world::{BEGIN, Weather, World};

impl World {
    /// Nothing breaks any more, and everything has to come to its end.
    ///
    /// # Errors
    /// It does not, or an invariant did not hold.
    pub async fn calm(&mut self) -> Verdict {
        self.say(|| "calm".to_owned());
        self.weather = Weather::default();
        (self.quota_used_up, self.forbidden) = (false, false);
        self.hung.clear();
        self.operators.truncate(1);
        if self.operators.is_empty() {
            self.start_operator();
        }
        user::tidy(self);
        for runner in self.runners.values_mut() {
            runner.reconnect(&mut self.api);
            runner.mishap = runner.mishap.filter(|(_, mishap)| *mishap != Mishap::NodeLost);
        }
        self.silent.clear();
        let end = self.api.now + 12 * 3600;
        while self.api.now < end {
            match self.quiet().await? {
                Some(wait) if wait > 3600 => {
                    user::satisfied(self)?;
                    return self.nothing_happens().await;
                }
                Some(wait) => self.pass(wait).await,
                None => self.pass(20).await,
            }
        }
        let timers = self.operators[0].timers().map(|(key, at)| format!("{} at {}", key.2, at - BEGIN));
        let alive = self.runners.values().filter(|r| r.is_alive());
        let alive = alive.map(|r| format!("{} in {:?}", r.key.2, r.stage));
        let all: Vec<String> = timers.chain(alive).collect();
        Err(format!("twelve calm hours were not enough to come to an end: {}", all.join(", ")))
    }

    /// Does all that there is to do now. Says how long nothing will happen, if nothing works.
    async fn quiet(&mut self) -> Result<Option<i64>, String> {
        for round in 0..10_000 {
            self.settle().await;
            self.check()?;
            let mut busy = false;
            while self.gate.len() > 0 {
                let pending = self.gate.take(0);
                self.carry_out(pending);
                busy = true;
            }
            let operator = &mut self.operators[0];
            for which in 0..2 {
                while operator.is_behind(&self.api)[which] {
                    operator.show(&self.api, which, false, false);
                    busy = true;
                }
            }
            for key in operator.ready() {
                operator.begin(&key);
                busy = true;
            }
            busy |= operator.is_busy();
            if !busy {
                let before = self.api.history.len();
                let alive: Vec<String> =
                    self.runners.values().filter(|r| r.is_alive()).map(|r| r.uid.clone()).collect();
                for uid in &alive {
                    self.work_on(uid);
                }
                self.api.collect();
                if self.api.history.len() == before {
                    let next = self.operators[0].next_timer().map(|at| (at - self.api.now).max(1));
                    // A courier writes a line every 20 seconds, and is to be heard.
                    let works = self.runners.values().any(|r| r.is_alive() && r.suffered.is_none());
                    let at_most = if works { 20 } else { 600 };
                    return Ok(match (next, alive.is_empty()) {
                        (None, true) => Some(i64::MAX),
                        (next, true) => next,
                        (Some(next), false) => Some(next.min(at_most)),
                        (None, false) => None,
                    });
                }
            }
            if round == 9_999 {
                return Err("work that does not end".into());
            }
        }
        Ok(None)
    }

    /// Nobody writes anything while nothing changes.
    async fn nothing_happens(&mut self) -> Verdict {
        let before = self.api.history.len();
        for _ in 0..3 {
            self.operators[0].list_builds(&self.api, before);
            self.quiet().await?;
            self.pass(600).await;
        }
        if self.api.history.len() == before {
            return Ok(());
        }
        Err(format!("{} changes although nothing happens", self.api.history.len() - before))
    }
}
