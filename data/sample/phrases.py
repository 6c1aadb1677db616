"""What hosts say and shops write, in English and Chinese: templates, and how a speech recognizer mishears them.

In speech, {name} is what a sentence calls the product: its name, its kind ("the sofa"), or something vague ("this
one"); {other} is the name of another product of the shop. In titles, {name} and {short} are name and kind.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Language:
    """The templates of a language."""

    name_column: str  # of products.csv
    article: str  # before a name in a sentence
    space: str  # between words
    joint: str  # between what a recognizer writes for two sentences
    titles: tuple[str, ...]
    brands: tuple[str, ...]
    qualities: tuple[str, ...]
    categories: dict[str, str]  # the sample's, as they are said; others are said as they are written
    vague: tuple[str, ...]
    openings: tuple[str, ...]
    about: tuple[str, ...]
    uses: tuple[str, ...]
    others: tuple[str, ...]
    prices: tuple[str, ...]
    fillers: tuple[str, ...]
    sounds: dict[str, str]  # what is heard instead of a letter or character


ENGLISH = Language(
    name_column="name",
    article="the ",
    space=" ",
    joint=", ",
    titles=(
        "{brand} {name}, {quality}, {category}",
        "{quality} {name} for the {category}, free shipping",
        "new season: {quality} {name} by {brand}",
        "{name} | {quality} | {category}",
        "{brand} {category} {name} {quality} gift idea",
        "livestream offer {quality} {name}",
        "{brand} {quality} {short}, easy to care for",
    ),
    brands=("Norvik", "Casa Luna", "Hemlock", "Tiller & Sons", "Maru", "Oberon", "Fjordhome", "Lindqvist"),
    qualities=("classic", "modern", "solid", "light", "handmade", "premium", "compact", "large", "simple", "elegant"),
    categories={},
    vague=("this one", "it", "this piece", "the next one", "number {number}"),
    openings=(
        "okay everyone, let us go on",
        "look at this, my friends",
        "link number {number}, who was waiting for it",
        "welcome to all who just came in",
        "so many of you asked for it",
        "now comes {name}",
    ),
    about=(
        "{name} is really {quality}",
        "I turn {name} around so you can see all sides",
        "we have {name} at home as well",
        "feel how {quality} {name} is",
        "my mother bought {name} last year and still loves it",
        "if you want {name} type one in the chat",
    ),
    uses=(
        "perfect for the {category}",
        "something for your {category}, right",
        "put it in the {category} and you are done",
        "it makes the whole {category} look {quality}",
    ),
    others=(
        "it goes well with the {other} from before",
        "the {other} comes later, have patience",
        "no, the {other} is sold out, sorry",
        "who has bought the {other} yesterday",
        "it is not like the {other}, it is more {quality}",
    ),
    prices=(
        "only {price} today and shipping is free",
        "normally {high}, now {price}, only in the live",
        "we have {number} left, be quick",
        "three, two, one, it is on the shelf",
        "send it back within a week if you do not like it",
    ),
    fillers=(
        "yes yes I see you in the chat",
        "follow the channel and click the heart",
        "can you hear me well",
        "one moment, I have to drink something",
        "where are you watching from today",
    ),
    sounds={"b": "p", "d": "t", "g": "k", "v": "f", "z": "s", "m": "n", "i": "e", "o": "u"},
)

CHINESE = Language(
    name_column="name_zh",
    article="",
    space="",
    joint=",",
    titles=(
        "{brand}{quality}{name}{category}家用",
        "{name} {quality} {category}专用 包邮",
        "新款{quality}{name}{brand}旗舰店",
        "{brand}【{name}】{category}{quality}款",
        "网红{quality}{name}送礼推荐{category}",
        "直播间专享{quality}{name}",
        "{brand}{quality}{short}ins风",
    ),
    brands=("林氏", "木语", "优家", "北欧印象", "小熊家", "云上", "MUYU", "拾光"),
    qualities=("简约", "现代", "结实", "轻便", "手工", "高档", "小巧", "大号", "百搭", "精致"),
    categories={
        "Bathroom": "卫浴",
        "Bedroom": "卧室",
        "Doors and windows": "门窗",
        "Exterior": "户外",
        "Kitchen": "厨房",
        "Lights": "灯具",
        "Living room": "客厅",
        "Miscellaneous": "日用",
        "Office": "办公室",
        "Staircases": "楼梯",
        "Vehicles": "汽车",
    },
    vague=("这个", "这一款", "它", "下面这个", "{number}号链接"),
    openings=(
        "好了家人们我们继续",
        "来看这边看这边",
        "{number}号链接刚才谁在等",
        "欢迎刚进直播间的宝宝",
        "好多人问的来了",
        "接下来是{name}",
    ),
    about=(
        "{name}真的很{quality}",
        "我把{name}转一圈给你们看",
        "{name}我自己家里也在用",
        "你看{name}多{quality}",
        "我妈去年买了{name}到现在还喜欢",
        "想要{name}的扣一",
    ),
    uses=(
        "放在{category}特别好",
        "{category}里用的对吧",
        "放{category}里就对了",
        "整个{category}都显得{quality}",
    ),
    others=(
        "跟刚才的{other}很搭",
        "{other}在后面不要着急",
        "{other}没有了不好意思",
        "昨天谁拍了{other}",
        "跟{other}不一样它更{quality}",
    ),
    prices=(
        "今天只要{price}块还包邮",
        "平时{high}今天直播间{price}",
        "还剩{number}单抓紧",
        "三二一上链接",
        "不喜欢七天无理由退",
    ),
    fillers=(
        "我看到你们的评论了",
        "点点关注点点小红心",
        "听得到我声音吗",
        "等一下我喝口水",
        "大家都是哪里的朋友呀",
    ),
    sounds=dict(zip("的在是这家好里一个有来看想都大点", "得再事着加号理以各又莱砍相读打店", strict=True)),
)
