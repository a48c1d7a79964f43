"""Average precision of extended benchmarks by loops over thresholds and clips."""


def count(clips, threshold, level):
    """Precision and recall at a confidence, clip by clip."""
    true_positive = false_positive = false_negative = 0
    for confidence, ciou, has_object in clips:
        if confidence >= threshold:
            if has_object and ciou >= level:
                true_positive += 1
            else:
                false_positive += 1
        elif has_object:
            false_negative += 1
    predicted, wanted = true_positive + false_positive, true_positive + false_negative
    return (true_positive / predicted if predicted else 1.0, true_positive / wanted if wanted else 1.0)


def f1(precision, recall):
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def best_from(points, k):
    """The best precision at this or a lower threshold."""
    return max(precision for precision, _ in points[k:])


def slavc_area(points):
    """What recall gains next is paid at the best precision from here on."""
    steps = range(len(points) - 1)
    return sum(best_from(points, k) * (points[k + 1][1] - points[k][1]) for k in steps)


def exact_area(points):
    """What recall gains here is paid at the best precision from here on, from recall 0."""
    recalls = [0.0, *(recall for _, recall in points)]
    return sum(best_from(points, k) * (recalls[k + 1] - recalls[k]) for k in range(len(points)))


def slow_scores(clips, level):
    confidences = sorted(confidence for confidence, _, _ in clips)
    num_clips = len(clips)
    downwards = confidences[:-1][:: -max(1, num_clips // 200)]
    every = sorted(set(confidences), reverse=True)
    points = [count(clips, threshold, level) for threshold in every]
    positives = [clip for clip in clips if clip[2]]
    return {
        "average_precision": slavc_area([count(clips, at, level) for at in downwards]),
        "average_precision_exact": exact_area(points),
        "max_f1": max(
            f1(*count(clips, threshold, level)) for threshold in confidences[:: max(1, num_clips // 10)]
        ),
        "max_f1_exact": max(f1(*point) for point in points),
        "f1_at_half": f1(*count(clips, 0.5, level)),
        "localisation_accuracy": count(positives, -1000, level)[0],
        "precision_all": count(clips, -1000, level)[0],
    }
