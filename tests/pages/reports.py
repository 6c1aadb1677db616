"""A report of a tiny shop whose texts a page must escape, for tests."""

import dataclasses

import numpy as np

from rice_jax.eval import metrics, ranking
from rice_jax.eval.results import Row
from rice_jax.input.ground_truth import read_gallery_index, read_query_index
from rice_jax.pages import album, report
from rice_jax.pages.attention import Attention
from rice_jax.tasks.retrieval_evaluation import LABELS
from tests.settings import small_config

EVIL = "</script><script>document.title='broken'</script><b title='x\" onclick=1'>{{ 7 * 7 }}$\\frac{1}{0}$"
LOG = [{"step": 0, "retrieval/rank-1": 0.25}, *({"step": i, "loss": 2.0 / i, "accuracy": 0.5} for i in range(1, 7))]


def evaluated(data_dir, *, labels=LABELS, num_frames=3, single=False):
    """A ranking of a shop's queries as an evaluator would make one; the first query is a miss."""
    data = dataclasses.replace(small_config().input, data_dir=str(data_dir), num_frames=num_frames)
    queries = [query._replace(category=EVIL if i else "") for i, query in enumerate(read_query_index(data))]
    gallery_ids, image_ids, _ = read_gallery_index(data.data_dir, data.gallery)
    if single:
        queries = [query for query in queries if query.gallery_id == queries[0].gallery_id]
    scores = np.random.default_rng(0).uniform(-1, 1, (len(queries), len(image_ids))).astype(np.float32)
    for row, query in enumerate(queries):
        truth = [
            i for i, pair in enumerate(zip(gallery_ids, image_ids, strict=True))
            if pair[0] == query.gallery_id and pair[1] in query.image_ids
        ]  # fmt: skip
        scores[row, truth] = 2.0 if row else -2.0
    ranked = ranking.rank(
        ranking.Queries(
            embeddings=scores,
            ids=[query.clip_id for query in queries],
            gallery_ids=[query.gallery_id for query in queries],
            truths=[query.image_ids for query in queries],
        ),
        ranking.GalleryImages(np.eye(len(image_ids), dtype=np.float32), gallery_ids, image_ids),
    )
    values = {label: [getattr(query, label) for query in queries] for label in labels}
    result = metrics.evaluate(
        ranked, num_queries=len(queries) + 2, labels={label: known for label, known in values.items() if any(known)}
    )
    rows = {pair: row for row, pair in enumerate(zip(gallery_ids, image_ids, strict=True))}
    return ranked, queries, result, album.Album(data.data_dir, data.query, data.gallery, rows, num_frames)


def write(path, data_dir, log=(), weights=None, **kwargs):
    """Writes a report; `weights` is the attention of the last query."""
    ranked, queries, result, pictures = evaluated(data_dir, **kwargs)
    seen = None
    if weights is not None:
        last = len(queries) - 1
        seen = Attention(small_config().input, {last: ranked.truths[last][0]}, weights[None])
    results = {Row(0): result, Row(6): result}
    skipped = {"a": f"no frames {EVIL}", "b": "unreadable"}
    evaluation = report.Evaluation(f"run {EVIL}", results, Row(6), ranked, queries, log, skipped)
    report.write_report(path, evaluation, pictures, seen)
    return path.read_text(encoding="utf-8")
