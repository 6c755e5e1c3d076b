//! Where in a line of line protocol a refusal of storage points.
//!
//! Storage sees columns, not text, so its refusals have a line but no column. This finds it again
//! for the sender. Never: decides anything; a place that is not found is column 0.

use millrace_protocol::batch::RefusalCode;

/// Column (from 1, in bytes) of what `code` refuses in `line`: the time, or the tag or field that
/// is the first name between backticks and an equals sign away in `reason`. 0 if it is not there.
pub fn column(line: &str, code: RefusalCode, reason: &str) -> u32 {
    let at = match code {
        RefusalCode::OutOfWindow | RefusalCode::OutOfRetention | RefusalCode::BadTime => {
            line.trim_end().rfind(' ').map(|space| space + 1)
        }
        _ => reason.split('`').skip(1).step_by(2).find_map(|name| named(line, name)),
    };
    at.and_then(|at| u32::try_from(at + 1).ok()).unwrap_or(0)
}

/// Where `name=` begins, behind a comma or space.
fn named(line: &str, name: &str) -> Option<usize> {
    let escaped: String = name
        .chars()
        .flat_map(|c| matches!(c, ',' | '=' | ' ').then_some('\\').into_iter().chain([c]))
        .collect();
    let wanted = format!("{escaped}=");
    line.match_indices(&wanted).map(|(at, _)| at).find(|at| {
        let before = at.checked_sub(1).and_then(|b| line.as_bytes().get(b));
        matches!(before, Some(b',' | b' '))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn d4_the_refused_part_of_a_line_is_found_again() {
        let line = "m,host=a value=\"x\",my\\ value=2i 99";
        let conflict = |name: &str| {
            let reason = format!("field `{name}` of table `m` is a float");
            column(line, RefusalCode::TypeConflict, &reason)
        };
        assert_eq!(conflict("value"), 10);
        assert_eq!(conflict("my value"), 20);
        assert_eq!(conflict("absent"), 0);
        assert_eq!(column(line, RefusalCode::OutOfWindow, "too late"), 33);
        assert_eq!(column("m v=1", RefusalCode::Quota, "table `m` is full"), 0);
    }
}
