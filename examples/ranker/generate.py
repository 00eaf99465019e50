"""A generated log in which longer histories really help."""

import numpy as np
import pyarrow as pa
from tqdm import tqdm

EVENTS_PER_REQUEST = 8


def generate_log(num_users: int = 20, requests_per_user: int = 1500, num_items: int = 3000, seed: int = 0) -> pa.Table:
    """Events of users with interests at short, middle and very long range.

    A user's opinion of an item (like or dislike, each for one half) is the user's own, so neither the item nor the
    user tells a label; only the user's last meeting with that item does. Each user holds three pools of items:

    - short: 8 items, two or three a request, replaced after 12 requests: the last meeting is some 25 events back;
    - middle: 100 items, two or three a request, replaced after 250 requests: some 300 events back;
    - long: 1,000 items, three a request, never replaced: some 2,700 events back, often 8,000 and more.

    A label is the opinion, flipped in one of ten cases. A model that sees the last 64 events can place the short pool
    alone, with 1,024 the middle one too, and only one that sees some 10,000 events most of the long pool.

    Args:
        num_users: users.
        requests_per_user: requests of 8 targets each, an hour apart.
        num_items: items, shared by all users.
        seed: of all random numbers.
    """
    rng = np.random.default_rng(seed)
    pools = ((8, 12), (100, 250), (1000, requests_per_user))  # size, requests until it is replaced
    users, items, times, labels = [], [], [], []
    for user in tqdm(range(num_users), desc="generating", unit="user"):
        likes = rng.random(num_items) < 0.5
        current = [rng.choice(num_items, size, replace=False) for size, _ in pools]
        for request in range(requests_per_user):
            for pool, (size, lifetime) in enumerate(pools):
                if request % lifetime == 0 and request > 0:
                    current[pool] = rng.choice(num_items, size, replace=False)
            counts = np.bincount(np.append(np.arange(EVENTS_PER_REQUEST - 1) % 3, 2), minlength=3)
            shown = np.concatenate(
                [rng.choice(items_of, count, replace=False) for items_of, count in zip(current, counts, strict=True)]
            )
            users.append(np.full(EVENTS_PER_REQUEST, user))
            items.append(shown)
            times.append(np.full(EVENTS_PER_REQUEST, (request * num_users + user) * 3600 // num_users))
            labels.append(likes[shown] ^ (rng.random(EVENTS_PER_REQUEST) < 0.1))
    columns = {"user_id": users, "item_id": items, "timestamp": times, "label": labels}
    events = {name: np.concatenate(column) for name, column in columns.items()}
    return pa.table(events | {"label": events["label"].astype(np.float32)})
