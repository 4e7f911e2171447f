"""`linux/netfilter/nf_tables.h`, and of `linux/netfilter/nf_tables_compat.h` what iptables-nft writes."""

from enum import IntEnum


class NftMsg(IntEnum):
    """`NFT_MSG_*`: message types of the subsystem."""

    NEWTABLE = 0
    GETTABLE = 1
    DELTABLE = 2
    NEWCHAIN = 3
    GETCHAIN = 4
    DELCHAIN = 5
    NEWRULE = 6
    GETRULE = 7
    DELRULE = 8
    NEWSET = 9
    DELSET = 11
    NEWSETELEM = 12
    GETSETELEM = 13
    DELSETELEM = 14
    NEWGEN = 15
    GETGEN = 16
    GETOBJ = 19


class NftaList(IntEnum):
    """`NFTA_LIST_*`: one item of a list, whatever the list holds."""

    ELEM = 1


class NftaTable(IntEnum):
    """`NFTA_TABLE_*`: attributes of a table."""

    NAME = 1
    FLAGS = 2


class NftaChain(IntEnum):
    """`NFTA_CHAIN_*`: attributes of a chain."""

    TABLE = 1
    NAME = 3
    HOOK = 4
    POLICY = 5


class NftaRule(IntEnum):
    """`NFTA_RULE_*`: attributes of a rule."""

    TABLE = 1
    CHAIN = 2
    HANDLE = 3
    EXPRESSIONS = 4
    USERDATA = 7


class NftaExpr(IntEnum):
    """`NFTA_EXPR_*`: an expression of a rule; what `DATA` holds depends on the name."""

    NAME = 1
    DATA = 2


class NftaSetElemList(IntEnum):
    """`NFTA_SET_ELEM_LIST_*`: attributes of a message about elements."""

    TABLE = 1
    SET = 2
    ELEMENTS = 3


class NftaSetElem(IntEnum):
    """`NFTA_SET_ELEM_*`: attributes of one element."""

    KEY = 1
    DATA = 2
    TIMEOUT = 4
    EXPIRATION = 5
    USERDATA = 6
    KEY_END = 10


class NftaData(IntEnum):
    """`NFTA_DATA_*`: a value, or a verdict."""

    VALUE = 1
    VERDICT = 2


class NftaVerdict(IntEnum):
    """`NFTA_VERDICT_*`: attributes of a verdict."""

    CODE = 1
    CHAIN = 2


class NftVerdict(IntEnum):
    """`NFT_*`: verdicts of nf_tables, besides `NF_DROP` and `NF_ACCEPT`."""

    JUMP = -3
    GOTO = -4


class NftReg(IntEnum):
    """`NFT_*`: registers that pass a value from one expression of a rule to the next."""

    REG_1 = 1


class NftaNg(IntEnum):
    """`NFTA_NG_*`: attributes of the expression ``numgen``."""

    DREG = 1
    MODULUS = 2
    TYPE = 3
    OFFSET = 4


class NftNg(IntEnum):
    """`NFT_NG_*`: how ``numgen`` chooses its number."""

    RANDOM = 1


class NftaMeta(IntEnum):
    """`NFTA_META_*`: attributes of the expression ``meta``."""

    KEY = 2
    SREG = 3


class NftMeta(IntEnum):
    """`NFT_META_*`: the field of a packet that ``meta`` reads or sets."""

    PRIORITY = 2


class NftaGen(IntEnum):
    """`NFTA_GEN_*`: a generation of the ruleset, and the process that made it."""

    ID = 1
    PROC_PID = 2
    PROC_NAME = 3


class NftaObj(IntEnum):
    """`NFTA_OBJ_*`: attributes of a named object of a table, such as a counter."""

    TABLE = 1
    NAME = 2
    TYPE = 3
    DATA = 4


class NftObject(IntEnum):
    """`NFT_OBJECT_*`: types of named objects."""

    COUNTER = 1


class NftaCounter(IntEnum):
    """`NFTA_COUNTER_*`: attributes of a counter, an expression or an object."""

    BYTES = 1
    PACKETS = 2


class NftaImmediate(IntEnum):
    """`NFTA_IMMEDIATE_*`: attributes of the expression ``immediate``, which also holds the verdict of a rule."""

    DATA = 2


class NftaMatch(IntEnum):
    """`NFTA_MATCH_*`: attributes of the expression ``match``, a match of x_tables in a rule of iptables-nft."""

    NAME = 1
    REV = 2
    INFO = 3


class NftaCompat(IntEnum):
    """`NFTA_COMPAT_*` in `linux/netfilter/nf_tables_compat.h`: attributes of a request for an extension of x_tables."""

    NAME = 1
    REV = 2
    TYPE = 3
