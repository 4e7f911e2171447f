"""`linux/netfilter/nf_tables.h`, and of `linux/netfilter/nf_tables_compat.h` what iptables-nft writes."""

from enum import IntEnum

# The comments give the type of each value. Numbers are in network byte order, texts end with a zero byte, and {} holds nested
# attributes. The kernel does not require NLA_F_NESTED in requests, and leaves it out in answers.


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
    NEWGEN = 15  # sent by the kernel only: a transaction was committed
    GETGEN = 16
    GETOBJ = 19


class NftaList(IntEnum):
    """`NFTA_LIST_*`: one item of a list, whatever the list holds."""

    ELEM = 1


class NftaTable(IntEnum):
    """`NFTA_TABLE_*`: attributes of a table."""

    NAME = 1  # text
    FLAGS = 2  # u32; 1: dormant, the base chains are not attached to their hooks


class NftaChain(IntEnum):
    """`NFTA_CHAIN_*`: attributes of a chain."""

    TABLE = 1  # text
    NAME = 3  # text
    HOOK = 4  # { hook u32, priority i32 }, in base chains only
    POLICY = 5  # u32: NF_DROP 0, NF_ACCEPT 1


class NftaRule(IntEnum):
    """`NFTA_RULE_*`: attributes of a rule."""

    TABLE = 1  # text
    CHAIN = 2  # text
    HANDLE = 3  # u64, unique in the table
    EXPRESSIONS = 4  # { NftaList.ELEM { NftaExpr } ... }, run in this order
    USERDATA = 7  # bytes that the kernel stores; nft and iptables keep comments there


class NftaExpr(IntEnum):
    """`NFTA_EXPR_*`: an expression of a rule; what `DATA` holds depends on the name."""

    NAME = 1  # text
    DATA = 2  # { } of the expression


class NftaSetElemList(IntEnum):
    """`NFTA_SET_ELEM_LIST_*`: attributes of a message about elements."""

    TABLE = 1  # text
    SET = 2  # text
    ELEMENTS = 3  # { NftaList.ELEM { NftaSetElem } ... }; at most 64 KiB, as lengths have 16 bits


class NftaSetElem(IntEnum):
    """`NFTA_SET_ELEM_*`: attributes of one element."""

    KEY = 1  # { NftaData.VALUE }
    DATA = 2  # { NftaData }, in maps only
    TIMEOUT = 4  # u64, milliseconds
    EXPIRATION = 5  # u64, milliseconds that are left
    USERDATA = 6  # bytes
    KEY_END = 10  # { NftaData.VALUE }, the end of an interval of concatenated fields (Linux 5.6)


class NftaData(IntEnum):
    """`NFTA_DATA_*`: a value, or a verdict."""

    VALUE = 1  # bytes; each field of a concatenation is padded to 4 bytes
    VERDICT = 2  # { NftaVerdict }


class NftaVerdict(IntEnum):
    """`NFTA_VERDICT_*`: attributes of a verdict."""

    CODE = 1  # i32: NftVerdict, or NF_DROP 0, NF_ACCEPT 1
    CHAIN = 2  # text, with a jump or goto


class NftVerdict(IntEnum):
    """`NFT_*`: verdicts of nf_tables, besides `NF_DROP` and `NF_ACCEPT`."""

    JUMP = -3
    GOTO = -4


class NftReg(IntEnum):
    """`NFT_*`: registers that pass a value from one expression of a rule to the next."""

    REG_1 = 1


class NftaNg(IntEnum):
    """`NFTA_NG_*`: attributes of the expression ``numgen``."""

    DREG = 1  # u32, the register for the result
    MODULUS = 2  # u32; results are from 0 to one less
    TYPE = 3  # u32
    OFFSET = 4  # u32, added to the result


class NftNg(IntEnum):
    """`NFT_NG_*`: how ``numgen`` chooses its number."""

    RANDOM = 1


class NftaMeta(IntEnum):
    """`NFTA_META_*`: attributes of the expression ``meta``."""

    KEY = 2  # u32: NftMeta
    SREG = 3  # u32, the register whose value the field gets


class NftMeta(IntEnum):
    """`NFT_META_*`: the field of a packet that ``meta`` reads or sets."""

    PRIORITY = 2


class NftaGen(IntEnum):
    """`NFTA_GEN_*`: a generation of the ruleset, and the process that made it."""

    ID = 1  # u32
    PROC_PID = 2  # u32
    PROC_NAME = 3  # text of at most 15 characters


class NftaObj(IntEnum):
    """`NFTA_OBJ_*`: attributes of a named object of a table, such as a counter."""

    TABLE = 1  # text
    NAME = 2  # text
    TYPE = 3  # u32
    DATA = 4  # { } of the type


class NftObject(IntEnum):
    """`NFT_OBJECT_*`: types of named objects."""

    COUNTER = 1


class NftaCounter(IntEnum):
    """`NFTA_COUNTER_*`: attributes of a counter, an expression or an object."""

    BYTES = 1  # u64
    PACKETS = 2  # u64


class NftaImmediate(IntEnum):
    """`NFTA_IMMEDIATE_*`: attributes of the expression ``immediate``, which also holds the verdict of a rule."""

    DATA = 2  # { NftaData }


class NftaMatch(IntEnum):
    """`NFTA_MATCH_*`: attributes of the expression ``match``, a match of x_tables in a rule of iptables-nft."""

    NAME = 1  # text
    REV = 2  # u32
    INFO = 3  # bytes: the match's own struct, in the byte order of the machine


class NftaCompat(IntEnum):
    """`NFTA_COMPAT_*` in `linux/netfilter/nf_tables_compat.h`: attributes of a request for an extension of x_tables."""

    NAME = 1  # text
    REV = 2  # u32, a revision
    TYPE = 3  # u32: 0 match, 1 target
