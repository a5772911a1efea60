"""Slow, obvious averages that the fast ones are compared with: a few lines each, in float64."""

from collections.abc import Sequence

import numpy as np


def lawa(snapshots: Sequence[np.ndarray], window: int) -> np.ndarray | None:
    """The mean of the latest `window` snapshots, or None while there are fewer."""
    if len(snapshots) < window:
        return None
    return np.mean(np.stack(snapshots[-window:]).astype(np.float64), axis=0)


def ema(snapshots: Sequence[np.ndarray], decay: float) -> np.ndarray | None:
    """Starts at the first snapshot; None before it."""
    average = None
    for snapshot in snapshots:
        snapshot = snapshot.astype(np.float64)
        average = snapshot if average is None else decay * average + (1 - decay) * snapshot
    return average


def follows_rate(rates: Sequence[float], share: float, top: float | None = None) -> np.ndarray:
    """The weight of each snapshot, oldest first, by the equations of FollowsRate's docstring, product by product."""
    rates = np.asarray(rates, np.float64)
    tops = np.maximum.accumulate(rates) if top is None else np.full(len(rates), top)
    half = share / 2 * np.sqrt(np.minimum(1.0, np.divide(rates, tops, out=np.zeros_like(rates), where=tops > 0)))
    numbers = np.arange(1, len(rates) + 1)
    decays = np.zeros(len(rates))
    for k in numbers[1:]:
        growth = k * half[k - 1] - (k - 1) * half[k - 2]
        both = half[k - 1] + half[k - 2]
        decays[k - 1] = (1 - 1 / k) ** max(1.0, 2 * (1 - growth) / both) if both > 0 else 0.0
    return np.array([(1 - decays[j]) * np.prod(decays[j + 1 :]) for j in range(len(rates))])


def nadamw(
    theta: np.ndarray, gradients: Sequence[np.ndarray], lr: float, b1: float, b2: float, decay: float, eps: float = 1e-8
) -> np.ndarray:
    """The equations of NadamW's docstring."""
    theta = theta.astype(np.float64)
    m, v = np.zeros_like(theta), np.zeros_like(theta)
    for t, g in enumerate(gradients, start=1):
        g = g.astype(np.float64)
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g * g
        numerator = (b1 * m + (1 - b1) * g) / (1 - b1**t)
        theta = (1 - lr * decay) * theta - lr * numerator / (np.sqrt(v / (1 - b2**t)) + eps)
    return theta


def orthogonalised(matrix: np.ndarray) -> np.ndarray:
    """Five steps of Muon's quintic, on the singular values of the matrix over its norm."""
    u, values, v = np.linalg.svd(matrix, full_matrices=False)
    values = values / np.linalg.norm(matrix)
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    return (u * values) @ v


def muon(
    theta: np.ndarray, gradients: Sequence[np.ndarray], lr: float, momentum: float, decay: float, corrected: bool
) -> np.ndarray:
    """Nesterov momentum, orthogonalised and scaled to the root mean square of .2; `corrected` for its start: optax."""
    theta = theta.astype(np.float64)
    held = np.zeros_like(theta)
    for t, g in enumerate(gradients, start=1):
        g = g.astype(np.float64)
        held = momentum * held + (1 - momentum) * g
        of_held, of_g = (1 - momentum ** (t + 1), 1 - momentum**t) if corrected else (1, 1)
        step = orthogonalised(momentum * held / of_held + (1 - momentum) * g / of_g)
        theta = (1 - lr * decay) * theta - lr * 0.2 * np.sqrt(max(theta.shape)) * step
    return theta


def ademamix(
    theta: np.ndarray,
    gradients: Sequence[np.ndarray],
    lr: float,
    betas: tuple[float, float, float],
    alpha: float,
    total: int,
    decay: float,
    eps: float = 1e-8,
) -> np.ndarray:
    """Algorithm 1 of arXiv 2409.03137, with its schedules over `total` updates."""
    b1, b2, b3 = betas
    theta = theta.astype(np.float64)
    fast, slow, v = np.zeros_like(theta), np.zeros_like(theta), np.zeros_like(theta)
    for t, g in enumerate(gradients, start=1):
        g = g.astype(np.float64)
        share = min(t / total, 1.0)
        # The half-life grows linearly: ln b is harmonic between those of b1 and b3.
        b = np.exp(1 / ((1 - share) / np.log(b1) + share / np.log(b3)))
        fast, slow = b1 * fast + (1 - b1) * g, b * slow + (1 - b) * g
        v = b2 * v + (1 - b2) * g * g
        step = (fast / (1 - b1**t) + share * alpha * slow) / (np.sqrt(v / (1 - b2**t)) + eps)
        theta = theta - lr * (step + decay * theta)
    return theta


def schedule_free_adamw(
    theta: np.ndarray, gradients: Sequence[np.ndarray], rates: Sequence[float], b1: float, b2: float, decay: float
) -> tuple[np.ndarray, np.ndarray]:
    """Algorithm 1 of arXiv 2405.15682 with rates that only rise: where gradients are taken (y), and evaluations (x)."""
    x = y = z = theta.astype(np.float64)
    v, total = np.zeros_like(x), 0.0
    for t, (g, lr) in enumerate(zip(gradients, rates, strict=True), start=1):
        g = g.astype(np.float64)
        v = b2 * v + (1 - b2) * g * g
        z = z - lr * (g / (np.sqrt(v / (1 - b2**t)) + 1e-8) + decay * y)
        total += lr**2
        x = x + (lr**2 / total) * (z - x)
        y = (1 - b1) * z + b1 * x
    return y, x


def soap(
    theta: np.ndarray, gradients: Sequence[np.ndarray], lr: float, b1: float, b2: float, decay: float, every: int
) -> np.ndarray:
    """Algorithm 3 of arXiv 2409.11321 for a matrix, both sides; as its authors' code: the first gradient only sets up
    the eigenbases, every update uses those of the one before, and the decay comes last."""
    theta = theta.astype(np.float64)
    m, v = np.zeros_like(theta), np.zeros_like(theta)
    for t, g in enumerate(gradients):
        g = g.astype(np.float64)
        if t == 0:
            left, right = (1 - b2) * g @ g.T, (1 - b2) * g.T @ g
            q_left, q_right = (np.linalg.eigh(side)[1][:, ::-1] for side in (left, right))
            continue
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * (q_left.T @ g @ q_right) ** 2
        direction = q_left @ ((q_left.T @ m @ q_right) / (np.sqrt(v) + 1e-8)) @ q_right.T
        theta = (theta - lr * np.sqrt(1 - b2**t) / (1 - b1**t) * direction) * (1 - lr * decay)
        left, right = b2 * left + (1 - b2) * g @ g.T, b2 * right + (1 - b2) * g.T @ g
        if t % every == 0:  # a power iteration, in the order of the eigenvalues
            by_left, by_right = (
                np.argsort(-np.sum(q * (side @ q), axis=0)) for q, side in ((q_left, left), (q_right, right))
            )
            v = v[by_left][:, by_right]
            q_left = np.linalg.qr((left @ q_left)[:, by_left])[0]
            q_right = np.linalg.qr((right @ q_right)[:, by_right])[0]
    return theta
