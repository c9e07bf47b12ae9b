//! Counts and times in a language.

use std::time::Duration;

use indicatif::{HumanCount, HumanDuration};

use super::Texts;

impl Texts {
    /// Returns a count with its noun: `1 file`, `1,234 files`.
    pub fn counted(&self, noun: &str, count: u64) -> String {
        let number = if count == 1 { "one" } else { "more" };
        self.fill(&format!("count.{number}.{noun}"), &[("count", &HumanCount(count).to_string())])
    }

    /// Returns a time, roughly: `3 minutes`.
    pub fn duration(&self, time: Duration) -> String {
        let said = HumanDuration(time).to_string();
        match said.split_once(' ') {
            Some((count, unit)) => self.fill(&format!("time.{unit}"), &[("count", count)]),
            None => said,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_and_times_are_said_in_each_language() {
        let zh = Texts::of("zh").unwrap();
        for (seconds, english, chinese) in [
            (0, "0 seconds", "0 秒"),
            (1, "1 second", "1 秒"),
            (60, "60 seconds", "60 秒"),
            (200, "3 minutes", "3 分钟"),
            (7200, "2 hours", "2 小时"),
            (3 * 86400, "3 days", "3 天"),
            (30 * 86400, "4 weeks", "4 周"),
            (800 * 86400, "2 years", "2 年"),
        ] {
            let time = Duration::from_secs(seconds);
            assert_eq!(
                (Texts::english().duration(time).as_str(), zh.duration(time).as_str()),
                (english, chinese)
            );
        }
        assert_eq!(Texts::english().counted("file", 1), "1 file");
        assert_eq!(Texts::english().counted("file", 1234), "1,234 files");
        assert_eq!(zh.counted("file", 1234), "1,234 个文件");
    }
}
