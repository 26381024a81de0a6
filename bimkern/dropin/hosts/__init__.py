"""The table of host programs that `bimkern.dropin.patch` knows, one file per family."""

from bimkern.dropin.hosts import mae
from bimkern.dropin.structure import Host

HOSTS: dict[str, Host] = {host.name: host for host in (mae.MAE,)}
