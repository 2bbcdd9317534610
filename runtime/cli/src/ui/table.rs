//! Tables: aligned columns for people, Markdown and CSV.

use std::fmt::Write;

/// How a column is aligned.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Align {
    Left,
    Right,
}

/// A table of text cells.
pub struct Table {
    heads: Vec<(String, Align)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these columns; a head that starts with `>` is aligned to the right.
    pub fn new(heads: &[&str]) -> Self {
        let head = |text: &&str| match text.strip_prefix('>') {
            Some(text) => (text.to_owned(), Align::Right),
            None => ((*text).to_owned(), Align::Left),
        };
        Self { heads: heads.iter().map(head).collect(), rows: Vec::new() }
    }

    /// Adds a row; missing cells are empty, more cells than columns are dropped.
    pub fn row(&mut self, mut cells: Vec<String>) {
        cells.resize(self.heads.len(), String::new());
        self.rows.push(cells);
    }

    /// Columns with two spaces between, without trailing spaces.
    pub fn text(&self) -> String {
        self.render("", "  ", "", false)
    }

    /// A Markdown table.
    pub fn markdown(&self) -> String {
        self.render("| ", " | ", " |", true)
    }

    /// Comma-separated values (RFC 4180).
    pub fn csv(&self) -> String {
        let quote = |cell: &String| {
            if cell.contains([',', '"', '\n', '\r']) {
                format!("\"{}\"", cell.replace('"', "\"\""))
            } else {
                cell.clone()
            }
        };
        let mut out = self.heads.iter().map(|(head, _)| quote(head)).collect::<Vec<_>>().join(",") + "\n";
        for row in &self.rows {
            out += &(row.iter().map(quote).collect::<Vec<_>>().join(",") + "\n");
        }
        out
    }

    fn render(&self, start: &str, between: &str, end: &str, rule: bool) -> String {
        let width = |column: usize| {
            let cells = self.rows.iter().map(|row| row[column].chars().count());
            cells.chain([self.heads[column].0.chars().count(), if rule { 3 } else { 0 }]).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.heads.len()).map(width).collect();
        let line = |cells: &mut dyn Iterator<Item = &str>| {
            let mut text = start.to_owned();
            for (column, cell) in cells.enumerate() {
                if column > 0 {
                    text += between;
                }
                // Writing to a string cannot fail.
                let _ = match self.heads[column].1 {
                    Align::Left => write!(text, "{cell:<0$}", widths[column]),
                    Align::Right => write!(text, "{cell:>0$}", widths[column]),
                };
            }
            text += end;
            text.trim_end().to_owned() + "\n"
        };
        let mut out = line(&mut self.heads.iter().map(|(head, _)| head.as_str()));
        if rule {
            let dashes: Vec<String> = (self.heads.iter().zip(&widths))
                .map(|((_, align), &width)| match align {
                    Align::Left => "-".repeat(width),
                    Align::Right => "-".repeat(width - 1) + ":",
                })
                .collect();
            out += &line(&mut dashes.iter().map(String::as_str));
        }
        for row in &self.rows {
            out += &line(&mut row.iter().map(String::as_str));
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Table {
        let mut table = Table::new(&["name", ">n"]);
        table.row(vec!["a, \"b\"".into(), "7".into()]);
        table.row(vec!["ü".into()]);
        table
    }

    #[test]
    fn columns_align() {
        assert_eq!(sample().text(), "name    n\na, \"b\"  7\nü\n");
        let markdown = "| name   |   n |\n| ------ | --: |\n| a, \"b\" |   7 |\n| ü      |     |\n";
        assert_eq!(sample().markdown(), markdown);
    }

    #[test]
    fn csv_quotes_what_needs_it() {
        assert_eq!(sample().csv(), "name,n\n\"a, \"\"b\"\"\",7\nü,\n");
    }
}
