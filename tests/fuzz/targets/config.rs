//! A configuration: accepted, or every problem is told.

use andon_os::heap;
use andond::config::Config;
use andond::task::Tasks;

pub(crate) fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let limit = (16 << 20) + 1000 * data.len();
    heap::measure(limit, data.len() as u64, || match Config::parse(text) {
        Ok(config) => {
            if let Err(problems) = Tasks::new(&config.task) {
                assert!(problems.iter().count() > 0);
            }
            // The same text is the same configuration.
            let again = Config::parse(text).expect("accepted before");
            assert_eq!(format!("{config:?}"), format!("{again:?}"));
        }
        Err(problems) => {
            assert!(problems.iter().count() > 0);
            assert!(
                problems
                    .iter()
                    .all(|problem| !problem.to_string().is_empty())
            );
        }
    });
}
