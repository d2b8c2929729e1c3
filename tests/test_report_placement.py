from statewise.report.placement import Anchor, Box, place_labels

BOUNDS = Box(0, 0, 300, 300)


def point(x, y):
    return Anchor(x, y, Box(x, y, x, y))


def test_labels_of_one_spot_do_not_cover_each_other():
    boxes = place_labels([point(150, 150)] * 4, [(60, 12)] * 4, [], BOUNDS)
    overlaps = [a.overlap(b) for i, a in enumerate(boxes) for b in boxes[:i]]
    assert max(overlaps) == 0


def test_a_label_at_the_edge_stays_inside():
    (box,) = place_labels([point(295, 295)], [(60, 12)], [], BOUNDS)
    assert box.overlap(BOUNDS) == box.area == 720


def test_a_label_avoids_a_line():
    line = Box(0, 158, 300, 162)
    (box,) = place_labels([point(150, 150)], [(60, 12)], [line], BOUNDS)
    assert box.overlap(line) == 0
