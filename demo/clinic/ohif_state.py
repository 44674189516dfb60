"""What OHIF shows and holds, read from its own services in the page and from the address; changes nothing."""

from playwright.sync_api import Page

from demo.clinic.stack import Stack
from demo.clinic.verification import State

# Places are fractions of the image, as in ohif_studies.py; what is painted is told by cells of 1/64 of the image.
# What one view does not have (3D has no slices) leaves that view or measurement untold, and no goal is reached by it.
READ_PAGE = """() => {
  const state = {path: location.pathname, viewports: [], rows: 0, columns: 0, measurements: [], tracked: [],
    segmentations: [], painted: [], nPainted: 0, radius: null, tagSearch: null, tagScroll: 0,
    filters: location.pathname === "/" ? Object.fromEntries(new URLSearchParams(location.search)) : {}};
  const services = window.services, {cornerstone, cornerstoneTools} = window;
  const readable = (read) => { try { return read(); } catch (error) { return null; } };
  const dialogs = [...document.querySelectorAll("[role=dialog]")];
  const dialog = dialogs.find(box => box.innerText.includes("DICOM Tag Browser"));
  if (dialog) {
    state.tagSearch = (dialog.querySelector("input[placeholder='Search metadata']") || {value: ""}).value;
    state.tagScroll = Math.max(0, ...[...dialog.querySelectorAll("*")].map(element => element.scrollTop));
  }
  if (!document.querySelector("[data-cy=viewport-pane]") || !cornerstone) return state;

  const grid = services.viewportGridService.getState();
  const displaySet = (uid) => services.displaySetService.getDisplaySetByUID(uid) || {};
  state.rows = grid.layout.numRows;
  state.columns = grid.layout.numCols;
  const panes = [...grid.viewports.values()].sort((a, b) => a.y - b.y || a.x - b.x);
  const drawn = cornerstone.getRenderingEngines().flatMap(engine => engine.getViewports());
  const readViewport = (pane) => {
    const viewport = drawn.find(one => one.id === pane.viewportId);
    const shown = displaySet(pane.displaySetInstanceUIDs[0]);
    if (!viewport || !shown.StudyInstanceUID || !viewport.getImageData()) return null;
    const properties = viewport.getProperties(), view = viewport.getViewPresentation();
    const range = properties.voiRange || {}, colours = properties.colormap;
    return {
      study: shown.StudyInstanceUID, series: shown.SeriesInstanceUID, slice: viewport.getSliceIndex(),
      zoom: view.zoom, rotation: view.rotation, isFlipped: view.flipHorizontal, isInverted: properties.invert,
      window: [range.lower, range.upper], colours: colours ? colours.Name || colours.name : null,
    };
  };
  state.viewports = panes.map(pane => readable(() => readViewport(pane)));

  const isShowing = (pane, viewport, uid) =>
    pane.viewportId === viewport.id && pane.displaySetInstanceUIDs.includes(uid);
  const readPoints = (one) => {
    const shows = (viewport) => viewport.getImageData() &&
      panes.some(pane => isShowing(pane, viewport, one.displaySetInstanceUID));
    const {imageData, dimensions} = drawn.find(shows).getImageData();
    const {contour, handles} = cornerstoneTools.annotation.state.getAnnotation(one.uid).data;
    const points = contour && contour.polyline && contour.polyline.length ? contour.polyline : handles.points;
    return points.map(point => imageData.worldToIndex(point))
      .map(index => [index[0] / (dimensions[0] - 1), index[1] / (dimensions[1] - 1)]);
  };
  state.measurements = services.measurementService.getMeasurements().map(one => ({
    tool: one.toolName, label: one.label || "", study: one.referenceStudyUID, series: one.referenceSeriesUID,
    image: one.referencedImageId || null, points: readable(() => readPoints(one)) || [],
  }));
  const tracking = services.trackedMeasurementsService;  // the Segmentation mode has none
  state.tracked = tracking ? tracking.getTrackedSeries() : [];

  const cells = new Set();
  const readVoxels = (image) => image.voxelManager.getScalarData().forEach((voxel, n) => {
    if (!voxel) return;
    const x = n % image.width, y = Math.floor(n / image.width);
    state.nPainted += 1;
    cells.add(Math.floor(x / image.width * 64) + "," + Math.floor(y / image.height * 64));
  });
  for (const segmentation of services.segmentationService.getSegmentations()) {
    state.segmentations.push(segmentation.segmentationId);
    const images = ((segmentation.representationData.Labelmap || {}).imageIds || []);
    images.forEach(id => readable(() => readVoxels(cornerstone.cache.getImage(id))));
  }
  state.painted = [...cells].map(cell => cell.split(",").map(number => (Number(number) + 0.5) / 64));
  const sizeOf = (id) => cornerstoneTools.utilities.segmentation.getBrushSizeForToolGroup(id);
  const groups = services.toolGroupService.getToolGroupIds();
  state.radius = groups.map(id => readable(() => sizeOf(id))).find(Boolean) || null;
  return state;
}"""


def read_state(page: Page, stack: Stack) -> State:
    """Read the open viewports, measurements, segmentations and dialogs; and that the store is what it was."""
    return page.evaluate(READ_PAGE) | {"instances": sorted(stack.get("/instances"))}
