"""A shop's pictures, as a directory and as a CSV."""

import unicodedata

import pytest

from rice_jax.index.catalog import read_names, read_shop
from rice_jax.types import DataError


def touch(directory, *names):
    for name in names:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(b"")
    return directory


def test_a_directory_with_and_without_galleries(tmp_path, caplog):
    touch(tmp_path, "b.JPG", "a.png", "live 1/b.webp", "live 1/c.d.jpeg", "notes.txt", ".hidden.jpg", ".git/x.jpg")
    with caplog.at_level("INFO", "rice_jax"):
        pictures = read_shop(tmp_path)
    assert [(picture.gallery, picture.id) for picture in pictures] == [
        ("", "a"),
        ("", "b"),
        ("live 1", "b"),
        ("live 1", "c.d"),
    ]
    assert pictures[2].path == tmp_path / "live 1" / "b.webp" and pictures[2].place == str(pictures[2].path)
    assert {picture.title for picture in pictures} == {""}
    assert f"{tmp_path}: left out 1 file whose names do not end in .jpg, .jpeg, .png, .webp: notes.txt" in caplog.text


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_names_with_accents_and_spaces_are_those_of_a_csv(tmp_path, form):
    """macOS decomposes accents in the names of files, and cells of a CSV have no spaces around them."""
    mug = unicodedata.normalize(form, "Becher grün")
    touch(tmp_path, f"{mug}.jpg", "café /vase /front .JPG")
    csv = tmp_path / "shop.csv"
    csv.write_text("id,path,gallery\n" + f"{mug}, {unicodedata.normalize('NFC', mug)}.jpg,\n")
    vase, own = sorted(read_shop(tmp_path), key=lambda picture: picture.id, reverse=True)
    assert (vase.gallery, vase.id, vase.product) == ("café", "vase/front", "vase") and vase.path.exists()
    (listed,) = read_shop(csv)
    assert own.id == own.product == listed.id == "Becher grün" and listed.path.exists()
    assert read_names(csv).pictures == {("", "Becher grün")}


def test_paths_with_backslashes_are_found(tmp_path):
    touch(tmp_path, "small/vase.jpg")
    (tmp_path / "shop.csv").write_text("id,path\nvase,small\\vase.jpg\ncup,small\\cup.jpg\n")
    cup, vase = read_shop(tmp_path / "shop.csv")
    assert vase.path == tmp_path / "small" / "vase.jpg" and cup.path.name == "small\\cup.jpg", "as it is written"


def test_what_systems_put_beside_pictures_is_left_out(tmp_path):
    touch(tmp_path, "a.jpg", "._a.jpg", "@eaDir/a.jpg/SYNOPHOTO_THUMB_M.jpg", "__MACOSX/a.jpg", "$RECYCLE.BIN/a.jpg")
    touch(tmp_path, "live/b.jpg", "live/@eaDir/b.jpg/thumb.jpg", "live/._b.jpg", "live/.DS_Store", "@mug.jpg")
    assert [(picture.gallery, picture.id) for picture in read_shop(tmp_path)] == [
        ("", "@mug"), ("", "a"), ("live", "b")
    ]  # fmt: skip


def test_a_csv(tmp_path):
    path = tmp_path / "shop.csv"
    path.write_text(
        '\ufefftitle,path,id,gallery\n"a ""red"" coat,\nlong",x/1.jpg,01,live\n帽子,/pictures/2.jpg,2,\n',
        encoding="utf-8",
    )
    hat, coat = read_shop(path)
    assert coat == ("live", "01", "01", tmp_path / "x" / "1.jpg", 'a "red" coat,\nlong', f"{path}:3", {})
    assert (hat.gallery, hat.title, str(hat.path), hat.place) == ("", "帽子", "/pictures/2.jpg", f"{path}:4")


def listed(path):
    return [(picture.gallery, picture.product, picture.id, picture.path.name) for picture in read_shop(path)]


def test_several_pictures_of_a_product_in_a_csv(tmp_path):
    path = tmp_path / "shop.csv"
    path.write_text("id,path,product,gallery\n1,a.jpg,mug,x\n2,b.jpg,mug,x\n3,c.jpg,,x\n4,d.jpg, ,x\n1,a.jpg,mug,y\n")
    assert listed(path) == [
        ("x", "mug", "1", "a.jpg"), ("x", "mug", "2", "b.jpg"), ("x", "3", "3", "c.jpg"), ("x", "4", "4", "d.jpg"),
        ("y", "mug", "1", "a.jpg"),
    ]  # fmt: skip


def test_an_id_that_a_csv_repeats_is_a_product(tmp_path, caplog):
    path = tmp_path / "multi.csv"
    path.write_text("id,path\nsku1,pics/p125.jpg\nsku2,pics/p020.jpg\nsku1,pics/p010.jpg\nsku1,pics/p030.jpg\n")
    with caplog.at_level("INFO", "rice_jax"):
        assert listed(path) == [
            ("", "sku1", "sku1", "p125.jpg"), ("", "sku1", "sku1/2", "p010.jpg"), ("", "sku1", "sku1/3", "p030.jpg"),
            ("", "sku2", "sku2", "p020.jpg"),
        ]  # fmt: skip
    assert f"{path}: 1 id has several pictures, the first is 'sku1'; these count as" in caplog.text
    path.write_text("id,path,gallery\nsku1,a.jpg,x\nsku1,b.jpg,y\n")
    assert listed(path) == [("x", "sku1", "sku1", "a.jpg"), ("y", "sku1", "sku1", "b.jpg")]


def test_several_pictures_of_a_product_in_a_directory(tmp_path):
    touch(
        tmp_path, "a.jpg", "live/b.jpg", "live/mug/1.jpg", "live/mug/2.jpg", "live/sofa/1.jpg", "live/mug/@eaDir/1.jpg"
    )
    touch(tmp_path, "live/sofa.jpg")
    assert listed(tmp_path) == [
        ("", "a", "a", "a.jpg"),
        ("live", "b", "b", "b.jpg"),
        ("live", "mug", "mug/1", "1.jpg"), ("live", "mug", "mug/2", "2.jpg"),
        ("live", "sofa", "sofa", "sofa.jpg"), ("live", "sofa", "sofa/1", "1.jpg"),
    ]  # fmt: skip


def test_columns_as_people_name_them(tmp_path, caplog):
    path = tmp_path / "shop.csv"
    path.write_text(
        "sep=;\n"
        'SKU;Photo;"Name";Live ID;Price;;"Stock; pieces"\n'
        'mug;a.jpg;Mug, "blue";x;9,99;;3\n'
        '; \n;;;;;;\nmug; b.jpg ;;x;"9,99 ""net""";;\n',
        encoding="utf-8-sig",
    )  # fmt: skip
    with caplog.at_level("INFO", "rice_jax"):
        first, second = read_shop(path)
    assert first == (
        "x",
        "mug",
        "mug",
        tmp_path / "a.jpg",
        'Mug, "blue"',
        f"{path}:3",
        {"Price": "9,99", "Stock; pieces": "3"},
    )
    assert second == (
        "x",
        "mug/2",
        "mug",
        tmp_path / "b.jpg",
        "",
        f"{path}:6",
        {"Price": '9,99 "net"', "Stock; pieces": ""},
    )
    assert (
        f"{path}:2: columns: 'SKU' is the product; 'Photo' is the path; 'Live ID' is the gallery; 'Name' is the title; "
        "kept with every match: 'Price', 'Stock; pieces'"
    ) in caplog.text


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("ID,Path", ("", "", {})),
        ("id,path,price", ("", "", {"price": "c"})),
        ("id,path,SKU", ("c", "", {})),
        ("sku,image,Product", ("c", "", {})),
        ("id,path,photo", ("", "", {"photo": "c"})),
        ("image-id,image,product_ID", ("c", "", {})),
        ("id,picture,Product  Name", ("", "c", {})),
        ("id,path,", ("", "", {})),
    ],
)
@pytest.mark.parametrize(("delimiter", "encoding"), [(",", "utf-8"), (";", "utf-8-sig"), ("\t", "utf-16")])
def test_names_delimiters_and_encodings(tmp_path, delimiter, encoding, names, expected):
    path = tmp_path / "shop.csv"
    columns = names.split(",")
    cells = ["1", "帽.jpg", *("c" if name else "" for name in columns[2:])]
    path.write_text("".join(delimiter.join(row) + "\r\n" for row in (columns, cells)), encoding=encoding)
    product, title, fields = expected
    assert read_shop(path) == [("", "1", product or "1", tmp_path / "帽.jpg", title, f"{path}:2", fields)]


def test_a_product_that_a_csv_repeats(tmp_path):
    path = tmp_path / "shop.csv"
    path.write_text("product,path\nmug,a.jpg\nmug,b.jpg\nsofa,c.jpg\n")
    assert listed(path) == [
        ("", "mug", "mug", "a.jpg"), ("", "mug", "mug/2", "b.jpg"), ("", "sofa", "sofa", "c.jpg")
    ]  # fmt: skip


def test_what_is_only_named_needs_no_path(tmp_path):
    path = tmp_path / "gone.csv"
    path.write_text("id,gallery\n1,a\n1,a\n")
    assert read_names(path) == ({("a", "1")}, set())
    with pytest.raises(DataError, match="gone.csv:1: found the columns 'id', 'gallery', expected id and path"):
        read_shop(path)
    path.write_text("Product;price\nmug;9\nsofa;8\n")
    assert read_names(path) == (set(), {("", "mug"), ("", "sofa")})
    path.write_text("id,product\n1,mug\n,mug\n")
    assert read_names(path) == ({("", "1")}, {("", "mug")})
    assert read_names(touch(tmp_path / "pictures", "x/a.jpg", "x/mug/1.jpg")) == ({("x", "a"), ("x", "mug/1")}, set())
    for text, expected in (
        (
            "title\nmug\n",
            "1: found the columns 'title', expected id in the first line, or other names for them: product",
        ),
        ("id,product,title\n,,x\n", "2: found no id and no product"),
        ("id\n", " found no picture, expected a line"),
    ):
        path.write_text(text)
        with pytest.raises(DataError, match=f"gone.csv:{expected}"):
            read_names(path)
    with pytest.raises(FileNotFoundError, match="expected a directory of pictures or a CSV"):
        read_names(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "1: found the columns of an empty file, expected id and path"),
        ("id,path\n", "found no picture, expected a line for each"),
        ("1,a.jpg\n2,b.jpg\n", "1: found the columns '1', 'a.jpg', expected id and path in the first line, or other"),
        ("id,path,ID\n1,a,2\n", "1: found the columns 'id', 'path', 'ID', expected every name once"),
        (
            "id,Photo,image\n1,a,b\n",
            "1: found the columns 'Photo' and 'image', each of which could be the path; rename ",
        ),
        ("product_id,sku,path\n1,2,a\n", "1: .*'product_id' and 'sku', each of which could be the product; rename"),
        ("id,path,\n1,a,b\n", "2: found 'b' in a column without a name"),
        ("product,path\n,a\n", "2: found no id"),
        ("sep=,\nid,path\n1\n", "3: found 1 values, expected 2"),
        ("id,path\n1,a.jpg\n2\n", "3: found 1 values, expected 2: id, path"),
        ("id,path\n1,a.jpg,b,c\n", "2: found 4 values, expected 2"),
        ("id,path\n1,\n", "2: found no path of '1'"),
        ("id,path\n ,a.jpg\n", "2: found no id"),
        ("id,path\n1,a.jpg\n2,b.jpg\n1,a.jpg\n", "4: found the id '1', which .*shop.csv:2 has too"),
        ("id,path\n1,a.jpg\n1,b.jpg\n1/2,c.jpg\n", "4: found the id '1/2', which .*shop.csv:3 has too"),
        (
            "id,path,product\n1,a.jpg,x\n2,b.jpg,x\n1,c.jpg,y\n",
            "4: found the id '1', which .*:2 has too; .* ids of their own and the same `product`",
        ),
        ("id,path,product\n1,a.jpg,x\n1,b.jpg,x\n", "3: found the id '1', which .*:2 has too"),
        ("id,path,product,product\n1,a.jpg,x,x\n", "1: found the columns 'id', 'path', 'product', 'product'"),
        ('id,path\n1,"a"b\n', "2: .*expected a CSV"),
        (b"id,path\n\xff,a.jpg\n", "expected a CSV in UTF-8"),
    ],
)
def test_a_bad_csv(tmp_path, text, expected):
    path = tmp_path / "shop.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=f"shop.csv:.*{expected}"):
        read_shop(path)


def test_a_bad_directory(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected a directory of pictures or a CSV"):
        read_shop(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"found no picture, expected pictures \(.jpg"):
        read_shop(touch(tmp_path / "empty", "notes.txt"))
    with pytest.raises(DataError, match="a.png: found the id 'a', which .*a.jpg has too"):
        read_shop(touch(tmp_path / "twice", "a.jpg", "a.png"))
    with pytest.raises(
        DataError, match="2 of 5 pictures have no usable id .*:\n  .*a.png: found the id 'a', .*\n  .*b.png: fou"
    ):
        read_shop(touch(tmp_path / "more", "a.jpg", "a.png", "b.jpg", "b.png", "c.jpg"))
    for name in ("shop/caf\udce9.jpg", "shop\udce9/cafe.jpg", "shop/gallery\udce9/cafe.jpg"):
        with pytest.raises(DataError, match=r"\\udce9.*found a name that is not UTF-8, .*rename it"):
            read_shop(touch(tmp_path / str(len(name)), name) / name.split("/")[0])
    with pytest.raises(DataError, match="more: found a directory in a product's directory, expected ID.jpg"):
        read_shop(touch(tmp_path / "deep", "gallery/product/more/a.jpg"))
