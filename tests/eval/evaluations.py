"""Random rankings and their results, for tests of what is written and shown of them."""

import numpy as np

from rice_jax.eval import metrics, ranking


def evaluation(seed=0, num_queries=60, labels=True):
    """A random ranking and its result; two more queries could not be ranked."""
    rng = np.random.default_rng(seed)
    sizes = rng.choice([22, 30, 38], num_queries) if num_queries == 60 else np.full(num_queries, 30)
    ranked = ranking.Ranking(
        query_ids=tuple(f"q{i}" for i in range(num_queries)),
        gallery_ids=tuple(f"g{size}" for size in sizes),
        truth_ranks=tuple((rank,) for rank in rng.integers(1, 23, num_queries).tolist()),
        gallery_size=sizes,
        truths=(("皮带",),) * num_queries,
        top=((("皮带", 0.5), ("b", 0.25)),) * num_queries,
        images=(("皮带", "b"),) * num_queries,
    )
    values = {
        "scale": rng.choice(["small", "medium", "large", ""], num_queries).tolist(),
        "category": rng.choice(["女装", "bags", "a very long name of a category that no table can hold"], num_queries),
    }
    labels = {label: list(map(str, v)) for label, v in values.items()} if labels else None
    return ranked, metrics.evaluate(ranked, num_queries=num_queries + 2, labels=labels)
