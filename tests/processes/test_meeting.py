"""Processes meet, or each of them says why not; here they are threads, for jax takes no part."""

import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from jaxpref.errors import InputError
from jaxpref.processes.links import has_ended, probe_hosts
from jaxpref.processes.meeting import meet


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def close(links):
    for link in links.values():
        link.close()


def met(*given, timeout=10.0):
    """What each of (process id, number of processes) is told; None: all are there."""
    address = f"localhost:{free_port()}"

    def one(process_id, processes):
        try:
            links = meet(address, processes, process_id, timeout)
        except InputError as error:
            return error.got
        assert set(links) == (set(range(1, processes)) if process_id == 0 else {0})
        close(links)
        return None

    with ThreadPoolExecutor(len(given)) as pool:
        return list(pool.map(one, *zip(*given, strict=True)))


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_all_come(order):
    assert met(*((number, 3) for number in order)) == [None] * 3


def test_one_does_not_come():
    said = met((0, 4), (2, 4), timeout=1.0)
    assert said == ["no sign of process 1, 3 of 4 within 1 s"] * 2


def test_two_have_one_number():
    first, *others = met((0, 3), (1, 3), (1, 3))
    assert first.startswith("two processes 1: on ") and others == [first] * 2


def test_other_numbers_of_processes():
    said = met((0, 2), (1, 3))
    assert said[0] == said[1] and said[0].startswith("2 processes by process 0, 3 by process 1 on ")


def test_no_coordinator():
    (said,) = met((1, 2), timeout=0.5)
    assert said.startswith("no answer within 0.5 s: ")


def test_port_in_use():
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        for processes in (1, 2):
            with pytest.raises(InputError, match=f"port {port}: Address already in use"):
                meet(f"localhost:{port}", processes, 0, timeout=5.0)


def test_another_program_knocks():
    """What is no process of ours is not counted."""
    port = free_port()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(meet, f"localhost:{port}", 2, 0, 10.0)
        while True:
            try:
                with socket.create_connection(("localhost", port)) as link:
                    link.sendall(b"GET / HTTP/1.1\r\n")
                break
            except ConnectionRefusedError:
                continue
        close(meet(f"localhost:{port}", 2, 1, 10.0))
        close(first.result())


def test_a_link_ends_where_its_process_does_and_leaves_the_port_free():
    port = free_port()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(meet, f"localhost:{port}", 2, 0, 10.0)
        theirs = meet(f"localhost:{port}", 2, 1, 10.0)
        ours = first.result()
    with socket.create_server(("", port)):  # as jax does
        probe_hosts(ours.values(), timeout=20.0)
        assert not has_ended(ours[1]) and not has_ended(theirs[0])
    close(theirs)
    assert has_ended(ours[1])
    close(ours)
