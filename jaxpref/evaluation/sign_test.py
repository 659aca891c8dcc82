"""The exact sign test."""


def sign_test(wins: int, losses: int) -> float:
    """Two-sided p-value of a result at least this uneven if both sides were as likely to win.

    Ties are dropped before.  p = min(1, 2 * sum_{i <= min(wins, losses)} C(n, i) / 2^n) with n =
    wins + losses; 1 where there is neither.  Exact: whole numbers up to the one division.
    Source: Conover, Practical Nonparametric Statistics, section 3.4.
    """
    n, tail, ways = wins + losses, 0, 1
    for i in range(min(wins, losses) + 1):
        tail += ways
        ways = ways * (n - i) // (i + 1)
    return min(1.0, 2 * tail / 2**n)
