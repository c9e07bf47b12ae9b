//! Texts that are too long for the room that there is.

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// Cuts a text at its end to so many columns; what is cut shows an ellipsis.
pub fn cut(text: &str, room: usize) -> String {
    if text.width() <= room {
        return text.to_owned();
    }
    let mut cut = beginning(text, room.saturating_sub(1));
    if room > 0 {
        cut.push('…');
    }
    cut
}

/// Cuts a path in its middle to so many columns: where it begins and where it ends say most.
pub fn cut_middle(path: &str, room: usize) -> String {
    let width = path.width();
    if width <= room || room < 3 {
        return if width <= room { path.to_owned() } else { cut(path, room) };
    }
    let before = beginning(path, (room - 1) / 3);
    let mut left = room - 1 - before.width();
    let mut after: Vec<char> = Vec::new();
    for c in path.chars().rev() {
        let wide = c.width().unwrap_or(0);
        if wide > left {
            break;
        }
        left -= wide;
        after.push(c);
    }
    after.reverse();
    format!("{before}…{}", after.into_iter().collect::<String>())
}

/// Returns as much of the beginning as so many columns have room for.
fn beginning(text: &str, room: usize) -> String {
    let mut left = room;
    text.chars()
        .take_while(|c| {
            let wide = c.width().unwrap_or(0);
            let fits = wide <= left;
            left = left.saturating_sub(wide);
            fits
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_cut_has_the_room_that_there_is() {
        for (text, room, told) in [
            ("whole", 5, "whole"),
            ("too long", 5, "too …"),
            ("too long", 1, "…"),
            ("too long", 0, ""),
            ("写时复制", 5, "写时…"),
            ("写时复制", 4, "写…"),
        ] {
            assert_eq!(cut(text, room), told);
        }
        for (path, room, told) in [
            ("/usr/share/doc", 14, "/usr/share/doc"),
            ("/usr/share/perl/5.36.0/unicore/lib", 16, "/usr/…nicore/lib"),
            ("/usr", 2, "/…"),
            ("/写时/写时/写时复制", 9, "/…时复制"),
        ] {
            assert_eq!(cut_middle(path, room), told);
            assert!(told.width() <= room);
        }
    }
}
