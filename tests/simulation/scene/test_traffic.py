import numpy as np
import pytest

from drone_kd.simulation.scene import meshes, scenes, traffic
from drone_kd.simulation.scene.blocks import BLOCKS
from drone_kd.simulation.scene.camera import Camera
from drone_kd.simulation.scene.render import render
from drone_kd.simulation.scene.scenes import Scene, build_scene
from drone_kd.simulation.scene.shapes import TILE_M, TILE_PX, fill_polygons
from drone_kd.simulation.scene.town import Layout, build_world
from drone_kd.simulation.scene.traffic import VehicleType

PLACE = ("mesh_ids", "place", "road_ids", "speed", "houses", "trees", "shadow", "sun")


def rectangles_overlap(world, pairs, t_s, shrink=1.0):
    """Whether the footprints of pairs (K, 2) of objects overlap, by separating axes."""
    shapes = meshes.library()
    poses = world.poses(t_s)[pairs]
    offset = (poses[:, 1, :2] - poses[:, 0, :2] + TILE_M / 2) % TILE_M - TILE_M / 2
    axes = np.stack([np.cos(poses[..., 2]), np.sin(poses[..., 2])], -1)
    axes = np.stack([axes, axes[..., ::-1] * (-1, 1)], 2)  # (K, object, along or across, 2)
    mesh = world.mesh_ids[pairs]
    half = shrink * np.stack([shapes.length[mesh], shapes.width[mesh]], -1) / 2
    apart = np.zeros(len(pairs), bool)
    for axis in axes.reshape(len(pairs), 4, 2).transpose(1, 0, 2):
        reach = (np.abs((axes * axis[:, None, None]).sum(-1)) * half).sum((1, 2))
        apart |= np.abs((offset * axis).sum(-1)) > reach
    return ~apart


def all_pairs(a, b):
    return np.stack(np.meshgrid(np.flatnonzero(a), np.flatnonzero(b)), -1).reshape(-1, 2)


@pytest.mark.parametrize("seed", [2, 3, 5])
def test_cross_traffic_moves_and_never_collides(seed):
    world = build_scene("crossing", seed)
    driving = (world.speed != 0) & (world.class_ids > 0)
    upright = np.array([road.vertical for road in world.roads])[world.road_ids]
    pairs = all_pairs(driving & upright, driving & ~upright)
    assert (driving & upright).sum() > 4 and (driving & ~upright).sum() > 1
    period_s = TILE_M / np.abs(world.speed[driving]).max()
    for t_s in np.arange(0, period_s, 0.1):
        assert not rectangles_overlap(world, pairs, t_s).any()


def test_walkers_keep_clear_of_parked_cars():
    count = 0
    for seed in range(6):
        world = build_scene("crossing", seed)
        walking = (world.speed != 0) & (world.class_ids == meshes.PERSON)
        kerbside = np.abs(world.place[:, 0] - TILE_M / 2) < 12
        parked = (world.speed == 0) & (meshes.library().length[world.mesh_ids] > 3) & kerbside
        along = np.array([road.vertical for road in world.roads])[world.road_ids]
        pairs = all_pairs(walking & along, parked)
        count += len(pairs)
        assert not any(rectangles_overlap(world, pairs, t_s).any() for t_s in range(0, 60, 3))
    assert count > 100


def test_a_new_vehicle_changes_no_world_of_a_theme_without_it(monkeypatch):
    town, rural = build_scene("crossing", 4), build_scene("highway", 4)
    machine = VehicleType("container", {"rural": 0.3})
    monkeypatch.setattr(traffic, "VEHICLES", [*traffic.VEHICLES, machine])
    for name in PLACE:
        same = getattr(build_scene("crossing", 4), name)
        np.testing.assert_array_equal(same, getattr(town, name))
    changed = build_scene("highway", 4)
    driving = changed.mesh_ids[changed.speed != 0]
    assert np.isin(driving, meshes.library().ids["container"]).sum() > 2
    standing = [world.place[world.speed == 0] for world in (rural, changed)]
    np.testing.assert_array_equal(*standing)
    np.testing.assert_array_equal(rural.houses, changed.houses)


def test_a_new_scene_with_a_new_block_changes_no_other(monkeypatch):
    before = {name: build_scene(name, 4) for name in ("car-park", "search")}
    monkeypatch.setitem(BLOCKS, "new", lambda plan, block: plan.tree(*block))
    monkeypatch.setitem(scenes._SCENES, "new", Scene(Layout("town", {"new": 1})))
    assert len(build_scene("new", 4).trees)
    for scene, world in before.items():
        again = build_scene(scene, 4)
        for name in PLACE:
            np.testing.assert_array_equal(getattr(again, name), getattr(world, name))


def test_a_world_without_objects_renders_without_boxes(monkeypatch):
    monkeypatch.setitem(BLOCKS, "empty", lambda plan, block: None)
    road = scenes._road(True, 1, 0.0)
    world = build_world(1, Layout("rural", {"empty": 1}, (road,), traffic=0.0))
    assert len(world.mesh_ids) == 0
    for pitch in (1.5, 0.2):
        view = render(world, Camera(0, 0, 50.0, 0.0, pitch, 0.0, 320.0, 320, 200), 0.0)
        assert view.xyxy.shape == (0, 4) and view.image.std() > 1


def test_a_road_without_markings_is_possible():
    raster = np.zeros((TILE_PX, TILE_PX), np.uint8)
    fill_polygons(raster, [])
    assert not raster.any()


def test_people_of_a_search_lie_and_hide_and_a_crowd_is_large():
    lying = meshes.library().ids["lying"]
    people, hidden = 0, 0
    for seed in range(4):
        world = build_scene("search", seed)
        places = world.place[np.isin(world.mesh_ids, lying)][:, :2]
        people += len(places)
        reach = np.linalg.norm(places[:, None] - world.trees[:, :2], axis=-1) - world.trees[:, 2]
        hidden += (reach.min(1) < 0.5).sum()
    assert people > 12 and 0.3 < hidden / people < 0.95
    assert (build_scene("crowd", 1).class_ids == meshes.PERSON).sum() > 300
