//! Places the boxes of a drawing in layers (after Sugiyama, Tagawa and Toda, 1981): a box stands below its operands,
//! crossings are few, and edges are nearly straight.

/// Where everything is, in pixels.
pub(super) struct Layout {
    /// Centre of each box.
    pub boxes: Vec<(f64, f64)>,
    /// Points that each edge passes, from the centre of its first box to the centre of its last.
    pub edges: Vec<Vec<(f64, f64)>>,
    /// Size of the drawing.
    pub size: (f64, f64),
}

/// Space between neighbours of a layer.
const GAP: f64 = 24.0;
/// Room that an edge takes when it passes a layer.
const LANE: f64 = 8.0;

/// Something that takes room in a layer: a box, or an edge passing by.
struct Item {
    width: f64,
    x: f64,
    above: Vec<usize>,
    below: Vec<usize>,
}

/// Lays out boxes of the given widths; `edges` go from lower to higher box numbers.
pub(super) fn layout(widths: &[f64], edges: &[(usize, usize)], pitch: f64, margin: f64) -> Layout {
    let mut rank = vec![0; widths.len()];
    let mut by_target = edges.to_vec();
    by_target.sort_by_key(|edge| edge.1);
    for &(from, to) in &by_target {
        rank[to] = rank[to].max(rank[from] + 1);
    }
    let layers = rank.iter().max().map_or(0, |last| last + 1);
    let mut rows = vec![Vec::new(); layers];
    let mut items = Vec::new();
    for (index, &width) in widths.iter().enumerate() {
        rows[rank[index]].push(index);
        items.push(Item { width, x: 0.0, above: Vec::new(), below: Vec::new() });
    }
    let mut chains = Vec::new();
    for &(from, to) in edges {
        let mut chain = vec![from];
        for row in &mut rows[rank[from] + 1..rank[to]] {
            row.push(items.len());
            chain.push(items.len());
            items.push(Item { width: LANE, x: 0.0, above: Vec::new(), below: Vec::new() });
        }
        chain.push(to);
        for pair in chain.windows(2) {
            items[pair[0]].below.push(pair[1]);
            items[pair[1]].above.push(pair[0]);
        }
        chains.push(chain);
    }

    let mut place = vec![0.0; items.len()];
    for sweep in 0..12 {
        let down = sweep % 2 == 0;
        let order: Vec<usize> = if down { (0..layers).collect() } else { (0..layers).rev().collect() };
        for row in order {
            let wanted = |item: &usize| {
                let neighbours = if down { &items[*item].above } else { &items[*item].below };
                mean(neighbours, |n| place[n]).unwrap_or(place[*item])
            };
            let mut keyed: Vec<(f64, usize)> = rows[row].iter().map(|item| (wanted(item), *item)).collect();
            keyed.sort_by(|a, b| a.0.total_cmp(&b.0));
            rows[row] = keyed.into_iter().map(|(_, item)| item).collect();
            for (index, &item) in rows[row].iter().enumerate() {
                // Centred, so that rows of different length compare.
                place[item] = index as f64 - rows[row].len() as f64 / 2.0;
            }
        }
    }
    for sweep in 0..40 {
        let order: Vec<usize> = if sweep % 2 == 0 { (0..layers).collect() } else { (0..layers).rev().collect() };
        for row in order {
            straighten(&rows[row], &mut items);
        }
    }

    let left = items.iter().map(|item| item.x - item.width / 2.0).fold(f64::INFINITY, f64::min);
    let right = items.iter().map(|item| item.x + item.width / 2.0).fold(f64::NEG_INFINITY, f64::max);
    let mut centres = vec![(0.0, 0.0); items.len()];
    for (index, row) in rows.iter().enumerate() {
        for &item in row {
            centres[item] = (items[item].x - left + margin, (index as f64 + 0.5) * pitch + margin);
        }
    }
    Layout {
        edges: chains.iter().map(|chain| chain.iter().map(|item| centres[*item]).collect()).collect(),
        size: ((right - left).max(0.0) + 2.0 * margin, layers as f64 * pitch + 2.0 * margin),
        boxes: centres[..widths.len()].to_vec(),
    }
}

/// Moves the items of a row as near to the middle of their neighbours as their order and widths allow (least squares,
/// by pooling adjacent violators).
fn straighten(row: &[usize], items: &mut [Item]) {
    let mut offset = 0.0;
    let mut offsets = Vec::with_capacity(row.len());
    for (index, &item) in row.iter().enumerate() {
        if index > 0 {
            offset += (items[row[index - 1]].width + items[item].width) / 2.0 + GAP;
        }
        offsets.push(offset);
    }
    // Blocks of items that touch each other: (sum of wishes, number of items).
    let mut blocks = Vec::<(f64, f64)>::new();
    for (&item, offset) in row.iter().zip(&offsets) {
        let neighbours: Vec<usize> = items[item].above.iter().chain(&items[item].below).copied().collect();
        let wish = mean(&neighbours, |n| items[n].x).unwrap_or(items[item].x);
        blocks.push((wish - offset, 1.0));
        while let [.., before, last] = blocks[..] {
            if before.0 / before.1 <= last.0 / last.1 {
                break;
            }
            blocks.pop();
            let end = blocks.len() - 1;
            blocks[end] = (before.0 + last.0, before.1 + last.1);
        }
    }
    let starts = blocks.iter().flat_map(|(sum, count)| std::iter::repeat_n(sum / count, *count as usize));
    for ((&item, offset), start) in row.iter().zip(&offsets).zip(starts) {
        items[item].x = start + offset;
    }
}

fn mean(of: &[usize], value: impl Fn(usize) -> f64) -> Option<f64> {
    (!of.is_empty()).then(|| of.iter().map(|&index| value(index)).sum::<f64>() / of.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boxes_of_a_layer_do_not_overlap_and_stand_below_their_operands() {
        let widths = [100.0, 40.0, 200.0, 60.0, 80.0, 120.0];
        let edges = [(0, 1), (0, 2), (0, 3), (1, 4), (2, 4), (3, 4), (0, 5), (4, 5)];
        let layout = layout(&widths, &edges, 50.0, 10.0);
        for (a, &(ax, ay)) in layout.boxes.iter().enumerate() {
            assert!(ax - widths[a] / 2.0 >= 9.9 && ax + widths[a] / 2.0 <= layout.size.0 - 9.9);
            for (b, &(bx, by)) in layout.boxes.iter().enumerate().skip(a + 1) {
                assert!(ay != by || (ax - bx).abs() >= (widths[a] + widths[b]) / 2.0, "boxes {a} and {b} overlap");
            }
        }
        for (points, (from, to)) in layout.edges.iter().zip(edges) {
            assert_eq!((points[0], points[points.len() - 1]), (layout.boxes[from], layout.boxes[to]));
            assert!(points.windows(2).all(|pair| pair[0].1 < pair[1].1), "edges go down");
        }
    }
}
